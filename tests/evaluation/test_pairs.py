"""Files of pairs, good and broken."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.pairs import read_pairs
from mexma.errors import InputError

ROWS = [
    ("fi", "Minulla on kaksi kissaa.", "I have two cats."),
    ("de", "Guten Morgen!", "Good morning!"),
    ("fi", "Kiitos.", "Thank you."),
    ("fi", "Yksin.", ""),
    ("fi", "", "Alone."),
    ("fi", " ", ""),
]


def tsv(path: Path, rows=ROWS, header=("lang", "src", "trg")) -> Path:
    path.write_text("".join("\t".join(r) + "\n" for r in [header, *rows]), encoding="utf-8")
    return path


def parquet(path: Path, rows=ROWS) -> Path:
    columns = {n: [r[i] or None for r in rows] for i, n in enumerate(("lang", "src", "trg"))}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("write", [tsv, parquet])
def test_pairs_and_lone_sentences_of_each_language(tmp_path, write):
    suffix = {tsv: ".tsv", parquet: ".parquet"}[write]
    found = read_pairs([write(tmp_path / f"pairs{suffix}")])
    assert list(found) == ["de", "fi"]
    assert found["fi"].source == ["Minulla on kaksi kissaa.", "Kiitos."]
    assert found["fi"].target == ["I have two cats.", "Thank you."]
    assert found["fi"].source_only == ["Yksin."]
    assert found["fi"].target_only == ["Alone."]
    assert found["fi"].alignment == [None, None]
    assert len(list(found["fi"].texts())) == 6


def test_columns_may_stand_in_any_order_and_have_gold_links(tmp_path):
    file = tsv(
        tmp_path / "gold.tsv",
        [("0-0 1p1", "a b", "de", "c d"), ("", "e", "de", "f")],
        header=("alignment", "trg", "lang", "src"),
    )
    pairs = read_pairs([file])["de"]
    assert pairs.source == ["c d", "f"]
    assert pairs.target == ["a b", "e"]
    assert pairs.alignment == ["0-0 1p1", None]


def test_a_line_separator_inside_a_sentence_is_text(tmp_path):
    file = tsv(tmp_path / "pairs.tsv", [("de", "eins\u2028zwei", "one two")])
    assert read_pairs([file])["de"].source == ["eins\u2028zwei"]


def test_files_add_up_and_a_limit_draws_the_same_pairs_again(tmp_path):
    rows = [("de", f"Satz {i}", f"sentence {i}") for i in range(50)]
    files = [tsv(tmp_path / "a.tsv", rows[:30]), parquet(tmp_path / "b.parquet", rows[30:])]
    everything = read_pairs(files)["de"]
    assert everything.source == [r[1] for r in rows]
    drawn = read_pairs(files, limit=10, seed=3)["de"]
    assert drawn == read_pairs(files, limit=10, seed=3)["de"]
    assert drawn != read_pairs(files, limit=10, seed=4)["de"]
    assert len(drawn) == 10
    assert set(zip(drawn.source, drawn.target, strict=True)) <= {r[1:] for r in rows}
    assert len(read_pairs(files, limit=1000)["de"]) == 50


def test_only_the_languages_asked_for(tmp_path):
    file = tsv(tmp_path / "pairs.tsv")
    assert list(read_pairs([file], languages=["de"])) == ["de"]
    with pytest.raises(InputError, match=r"expected rows of language sv, found none"):
        read_pairs([file], languages=["de", "sv"])


def test_what_is_wrong_is_said_with_its_place(tmp_path):
    def refused(file: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            read_pairs([file])
        assert file.name in str(caught.value)

    refused(tmp_path / "none.tsv", "expected a file of pairs, found none")
    refused(tsv(tmp_path / "pairs.csv"), r"expected a \.parquet or \.tsv file, found '\.csv'")
    empty = tmp_path / "empty.tsv"
    empty.write_bytes(b"")
    refused(empty, "lang is missing, found nothing")
    refused(tsv(tmp_path / "header.tsv", []), "expected pairs with both sides, found none")
    refused(tsv(tmp_path / "alone.tsv", [("de", "x", "")]), "expected pairs with both sides")
    refused(tsv(tmp_path / "c.tsv", header=("lang", "src", "x")), "trg is missing, found lang, src")
    refused(tsv(tmp_path / "cells.tsv", [("de", "a", "b"), ("de", "a")]), "line 3 has 2 cells")
    refused(tsv(tmp_path / "lang.tsv", [("", "a", "b")]), "row 0 .* has no language")
    latin = tmp_path / "latin.tsv"
    latin.write_bytes("lang\tsrc\ttrg\nde\tgrün\tgreen\n".encode("latin-1"))
    refused(latin, "expected UTF-8")
    fake = tmp_path / "fake.parquet"
    fake.write_bytes(b"PAR1 not really")
    refused(fake, "expected a Parquet file")
    void = tmp_path / "void.parquet"
    void.write_bytes(b"")
    refused(void, "expected a Parquet file")
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"lang": ["de"], "src": [1], "trg": ["x"]}), numbers)
    refused(numbers, "column src must hold text, found int64")
