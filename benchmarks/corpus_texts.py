"""Texts that have been translated into very many languages: phrases, a declaration, Bibles.

Each reader takes an archive and yields language, text and English text.
"""

from __future__ import annotations

import functools
import html
import io
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.corpus_packages import Rows, members
from benchmarks.corpus_sets import against_english

ACUTE = "\N{COMBINING ACUTE ACCENT}"  # where the stress is, in Ukrainian verses
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
