"""Pairs for the default model beyond software's help pages, from packages of free software.

    apt-get download freeciv-data tuxpaint-stamps-default wesnoth-1.16-data widelands-data \\
        wesnoth-1.16-{did,dm,dw,ei,httt,l,low,nr,sof,sota,sotbe,thot,trow,tsg,ttb,utbs} \\
        cataclysm-dda-data freedroidrpg-data warzone2100-data gbrainy iso-codes mediawiki
    npm pack scratch-l10n @openstreetmap/id-tagging-schema
    # clones of github.com/global-asp/{asp-source,global-asp,pb-source}, MicrosoftTranslator/NTREX,
    # tico-19/tico-19.github.io and 00-Evan/shattered-pixel-dungeon
    for r in asp-source global-asp pb-source NTREX tico-19.github.io shattered-pixel-dungeon; do
        git -C $r archive --format=tar -o PACKAGES/$r.tar HEAD; done
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

The texts are their authors' and stay in OUT; nothing of them is in this repository. Paragraphs,
and sentences where both sides have as many, become pairs of their own. Pairs with placeholders
or addresses, untranslated ones and ones of very different length are left out.
"""

from __future__ import annotations

import argparse
import gettext
import io
import json
import re
import subprocess
import tarfile
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
LETTER = re.compile(r"[^\W\d_]")
MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl", "ijekavianlatin": "Latn", "ijekavian": ""}
LONGEST_CHARACTERS = 400


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
    a = p.parse_args()
    wanted = {
        code.split("-")[0]
        for file in a.languages_of
        for code in pq.read_table(file, columns=["lang"])["lang"].unique().to_pylist()
    }
    a.out.mkdir(parents=True, exist_ok=True)
    for origin, (pattern, reader) in SOURCES.items():
        files = sorted(a.packages.glob(pattern))
        if not files:
            p.error(f"{a.packages}: expected {pattern} for {origin}, found none")
        rows = (row for file in tqdm(files, desc=origin) for row in reader(file))
        write(a.out, origin, rows, wanted)
    archives = [a.packages / f"{name}.tar" for name in ("asp-source", "global-asp", "pb-source")]
    for archive in archives:
        if not archive.is_file():
            p.error(f"{archive}: expected this file for stories, found none")
    for origin, judging in (("stories", False), ("stories-judge", True)):
        write(a.out, origin, stories(archives, judging=judging), wanted)


def write(out: Path, origin: str, found: Rows, wanted: set[str]) -> None:
    """OUT/ORIGIN.parquet, each pair once, of the languages that are wanted."""
    rows = sorted({row for row in cleaned(found) if row[0].split("-")[0] in wanted})
    if not rows:
        raise SystemExit(f"{origin}: expected translations in its packages, found none")
    languages, texts, english = zip(*rows, strict=True)
    table = pa.table(
        {"lang": languages, "src": texts, "trg": english, "origin": [origin] * len(rows)}
    )
    pq.write_table(table, out / f"{origin}.parquet", compression="zstd")
    print(f"{origin}: {len(rows)} pairs in {len(set(languages))} languages")


def cleaned(rows: Rows) -> Rows:
    """Pairs of paragraphs or sentences, of those that can be learnt from."""
    for code, text, english in rows:
        language = tag(code)
        if language.split("-")[0] == "en":
            continue
        for pair in pieces(text, english):
            if usable(*pair):
                yield language, *pair


def tag(code: str) -> str:
    """A locale's name (`sr@latin`, `pt_BR`, `zh-tw`) as BCP 47."""
    code, _, modifier = code.partition("@")
    first, *rest = code.replace("_", "-").split("-")
    rest = [r.upper() if len(r) == 2 else r for r in rest]
    return "-".join([first.lower(), *rest, *filter(None, [MODIFIERS.get(modifier, modifier)])])


def pieces(text: str, english: str) -> Iterator[tuple[str, str]]:
    """Paragraphs of both, if there are as many; of each, sentences, if there are as many."""
    paragraphs = [
        [p for p in (" ".join(MARKUP.sub(" ", q).split()) for q in BREAK.split(side)) if p]
        for side in (text, english)
    ]
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
}

if __name__ == "__main__":
    main()
