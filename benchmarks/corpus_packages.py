"""Translations in packages of games and other free software, as `default_model_corpus` wants them.

Each reader takes one package and yields language, text and English text.
"""

from __future__ import annotations

import gettext
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

Rows = Iterator[tuple[str, str, str]]  # language as the source writes it, text, English text


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


def two_letters(packages: Path) -> dict[str, str]:
    """ISO 639-3 to 639-1, from the package iso-codes; an individual language for its group."""
    (package,) = packages.glob("iso-codes_*.deb")
    ((_, content),) = members(package, "json/iso_639-3.json")
    found = {x["alpha_3"]: x["alpha_2"] for x in json.loads(content)["639-3"] if "alpha_2" in x}
    return found | {"arb": "ar"}


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
