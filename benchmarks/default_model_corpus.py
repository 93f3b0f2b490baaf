"""Pairs for the default model beyond software's help pages, from packages of free software.

    apt-get download freeciv-data tuxpaint-stamps-default wesnoth-1.16-data widelands-data \\
        wesnoth-1.16-{did,dm,dw,ei,httt,l,low,nr,sof,sota,sotbe,thot,trow,tsg,ttb,utbs}
    npm pack scratch-l10n @openstreetmap/id-tagging-schema
    python -m benchmarks.default_model_corpus PACKAGES OUT

PACKAGES is the folder of those .deb and .tgz files. OUT gets one Parquet file a source, with the
columns lang (BCP 47), src, trg (English) and origin, ready for `mexma-train`:

    wesnoth, widelands, freeciv    games: dialogue, narration and rules (GPL-2.0-or-later)
    tuxpaint                       a phrase for each picture (GPL-2.0-or-later)
    scratch                        a site that teaches programming to children (BSD-3-Clause)
    osm                            names of what is on a map (ISC)

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
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

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
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for origin, (package, reader) in SOURCES.items():
        files = sorted(a.packages.glob(package))
        if not files:
            p.error(f"{a.packages}: expected {package} for {origin}, found none")
        rows = sorted({row for file in tqdm(files, desc=origin) for row in cleaned(reader(file))})
        if not rows:
            p.error(f"{files[0]}: expected translations, found none that can be read")
        languages, texts, english = zip(*rows, strict=True)
        table = pa.table(
            {"lang": languages, "src": texts, "trg": english, "origin": [origin] * len(rows)}
        )
        pq.write_table(table, a.out / f"{origin}.parquet", compression="zstd")
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
        if path.name in ("freeciv-nations.mo", "freeciv-ruledit.mo"):
            continue  # names of peoples and rulers
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
    """Scratch: folders of `LANGUAGE.json`, each key to text."""
    folders: dict[PurePosixPath, dict[str, dict[str, Any]]] = {}
    for path, content in members(package, "*/*.json"):
        if {"www", "editor"} & set(path.parts):
            folders.setdefault(path.parent, {})[path.stem] = json.loads(content)
    for languages in folders.values():
        english = {k: message(v) for k, v in languages.pop("en", {}).items()}
        for language, texts in languages.items():
            for key, value in texts.items():
                if (text := message(value)) and (source := english.get(key)):
                    yield language, text, source


def message(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("message") or value.get("string")
    return value if isinstance(value, str) else ""


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
    "tuxpaint": ("tuxpaint-stamps-default_*.deb", stamps),
    "scratch": ("scratch-l10n-*.tgz", json_folders),
    "osm": ("openstreetmap-id-tagging-schema-*.tgz", json_trees),
}

if __name__ == "__main__":
    main()
