"""Translations in sets that were made to test or train language models, and in treebanks.

Each reader takes an archive of its repository and yields language, text and English text.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from benchmarks.corpus_packages import Rows, members, two_letters

CJK = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"
PUD = "UD_English-PUD.tar"


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


def words(text: str) -> str:
    """The text without case and marks."""
    return " ".join(re.findall(r"\w+", text.casefold()))
