"""Every format reads; what is broken in it is counted or refused, in one sentence."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.errors import DataError
from training.sources import Source, _streamed, read_sources

COLUMNS = ("src", "trg", "lang")
ROWS = [("Guten Tag", "Good day", "de"), ("Bonjour", "Hello", "fr")]
TABLE = pa.table(dict(zip(COLUMNS, zip(*ROWS, strict=True), strict=True)))


def read(path: Path | str, columns=COLUMNS) -> Source:
    (source,) = read_sources([str(path)], columns)
    return source


def rows(source: Source) -> list[tuple[str, str, str]]:
    return [tuple(row[c] for c in COLUMNS) for row in source.table.to_pylist()]


def refusal(path: Path | str, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_with_columns_of_other_names(tmp_path):
    pq.write_table(TABLE.rename_columns(["text", "english", "tag"]), tmp_path / "a.parquet")
    assert rows(read(tmp_path / "a.parquet", columns=("text", "english", "tag"))) == ROWS
    message = refusal(tmp_path / "a.parquet")
    assert "expected a column 'src', found text, english, tag" in message


def test_csv_and_tsv(tmp_path):
    (tmp_path / "a.csv").write_text(
        'lang,src,trg\nde,"Guten, Tag",Good day\nfr,"Bon\njour",Hello\n'
    )
    found = rows(read(tmp_path / "a.csv"))
    assert found == [("Guten, Tag", "Good day", "de"), ("Bon\njour", "Hello", "fr")]
    (tmp_path / "a.tsv").write_text('lang\tsrc\ttrg\nde\tSagte "ja\tSaid "yes\n')
    assert rows(read(tmp_path / "a.tsv")) == [('Sagte "ja', 'Said "yes', "de")]


def test_broken_rows_are_counted_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.tsv").write_bytes(
        b"src\ttrg\tlang\nGuten Tag\tGood day\tde\nnur zwei\tfelder\n \tblank\tde\n"
        b"kein\t\tde\nohne\tlanguage\t\n"
        + b"\xff\xfe\tnot text\tde\n"
        + "Äpfel\tapples\tde\n".encode()
    )
    source = read(tmp_path / "a.tsv")
    assert rows(source) == [ROWS[0], ("Äpfel", "apples", "de")]
    assert source.broken == {
        "wrong number of fields": 1, "no text in src": 1, "no text in trg": 1, "no language": 1,
        f"not UTF-8 (first in {tmp_path / 'a.tsv'}, line 7)": 1,
    }  # fmt: skip


def test_moses(tmp_path):
    (tmp_path / "news.de-en.de").write_text("Guten Tag\n\nJa\n")
    (tmp_path / "news.de-en.en").write_text("Good day\nnothing\nYes\n")
    source = read(tmp_path / "news.de-en")
    assert rows(source) == [("Guten Tag", "Good day", "de"), ("Ja", "Yes", "de")]
    assert source.broken == {"no text in src": 1}
    (tmp_path / "news.de-en.en").write_text("Good day\n")
    assert "3 lines in de, but 1 in en" in refusal(tmp_path / "news.de-en")


TMX = """<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header/><body>
<tu><tuv xml:lang="EN-us"><seg>Good <hi>day</hi></seg></tuv>
    <tuv xml:lang="de"><seg>Guten Tag</seg></tuv><tuv xml:lang="fr"><seg>Bonjour</seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>allein</seg></tuv></tu>
</body></tmx>"""


def test_tmx(tmp_path):
    (tmp_path / "a.tmx").write_text(TMX)
    source = read(tmp_path / "a.tmx")
    assert rows(source) == [("Guten Tag", "Good day", "de"), ("Bonjour", "Good day", "fr")]
    assert source.broken == {"unit without English or without another language": 1}


def test_tmx_that_is_cut_or_attacks(tmp_path):
    (tmp_path / "cut.tmx").write_text(TMX[:300])
    assert "not a readable TMX" in refusal(tmp_path / "cut.tmx")
    bomb = TMX.replace(
        '<!DOCTYPE tmx SYSTEM "tmx14.dtd">', '<!DOCTYPE tmx [<!ENTITY a "haha">]>'
    ).replace("allein", "&a;")
    (tmp_path / "bomb.tmx").write_text(bomb)
    assert "not a readable TMX" in refusal(tmp_path / "bomb.tmx")


def test_a_dataset_directory(tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    with pa.ipc.new_stream(saved / "data-00000-of-00001.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE)
    assert rows(read(saved)) == ROWS
    shards = tmp_path / "shards" / "data"
    shards.mkdir(parents=True)
    pq.write_table(TABLE[:1], shards / "train-0.parquet")
    pq.write_table(TABLE[1:], shards / "train-1.parquet")
    assert rows(read(tmp_path / "shards")) == ROWS
    (tmp_path / "nothing").mkdir()
    assert "expected .parquet, .arrow, .csv" in refusal(tmp_path / "nothing")


def test_a_stream_from_another_file_system():
    memory = fsspec.filesystem("memory")
    with memory.open("/datasets/someone/pairs/train-0.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    table, _ = _streamed(memory, "/datasets/someone/pairs", COLUMNS, "hf://someone")
    assert table["trg"].to_pylist() == [b"Good day", b"Hello"]
    with pytest.raises(DataError, match="hf://nobody: no Parquet file there"):
        _streamed(memory, "/datasets/nobody", COLUMNS, "hf://nobody")


def test_patterns_are_read_in_order(tmp_path):
    for i in (2, 1):
        pq.write_table(TABLE[i - 1 : i], tmp_path / f"{i}.parquet")
    found = read_sources([f"{tmp_path}/*.parquet"], COLUMNS)
    assert [s.name for s in found] == ["1", "2"]
    assert "no file matches" in refusal(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    assert f"{name}: is empty" in refusal(tmp_path / name)


def test_files_that_are_not_what_they_say(tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read" in refusal(tmp_path / "a.parquet")
    (tmp_path / "a.docx").write_text("x")
    assert "expected .parquet, .csv" in refusal(tmp_path / "a.docx")
    assert "expected this file, found none" in refusal(tmp_path / "missing.parquet")
    (tmp_path / "a.tsv").write_text("src\ttrg\tlang\n")
    assert "has no usable pair" in refusal(tmp_path / "a.tsv")


def test_the_phrases_are_there():
    assert len({lang for _, _, lang in rows(read("phrases"))}) == 41
