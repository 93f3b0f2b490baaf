"""A directory is read whole, or it is said what is not; and of a dataset no test split."""

from __future__ import annotations

import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.test_sources import COLUMNS, ROWS, TABLE, TMX, read, refusal, rows
from training.sources import _streamed


def stream(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def left_out(name):
    return f"for testing or validation ({name}; named alone it is read)"


def english(source):
    return sorted(row[1] for row in rows(source))


def test_all_kinds_below_a_directory_are_read(tmp_path):
    (tmp_path / "sub").mkdir()
    pq.write_table(TABLE[:1], tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("src\ttrg\tlang\nja\tfrom tsv\tde\nzwei\tfelder\n")
    (tmp_path / "sub" / "c.CSV").write_text("src,trg,lang\nja,from csv,de\n")
    (tmp_path / "sub" / "d.tmx").write_text(TMX)
    (tmp_path / "sub" / "e.de-en.de").write_text("ja\n")
    (tmp_path / "sub" / "e.de-en.en").write_text("from Moses\n")
    (tmp_path / "README.md").write_text("# about")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.parquet").write_text("a checkout's own")
    source = read(tmp_path)
    of_each = ["Good day", "Good day", "Good day", "from Moses", "from csv", "from tsv"]
    assert english(source) == of_each
    assert source.broken == {
        "wrong number of fields": 1, "unit without English or without another language": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "deu.txt", "b.en", "b.de-en.de.gz"])
def test_what_would_be_ignored_is_refused(tmp_path, name):
    pq.write_table(TABLE, tmp_path / "a.parquet")
    for about in ("README.txt", "LICENSE", "dataset_info.json"):
        (tmp_path / about).write_text("about it")
    assert rows(read(tmp_path)) == ROWS
    (tmp_path / name).write_text("{}\n")
    assert f"holds {name}, which would not be read" in refusal(tmp_path)


def test_only_moses_pairs(tmp_path):
    for side, text in (("de", "ja\n"), ("fr", "oui\n")):
        (tmp_path / f"news.{side}-en.{side}").write_text(text)
        (tmp_path / f"news.{side}-en.en").write_text(f"yes {side}\n")
    assert rows(read(tmp_path)) == [("ja", "yes de", "de"), ("oui", "yes fr", "fr")]
    (tmp_path / "news.fr-en.en").unlink()
    assert "news.fr-en.en: expected this file, found none" in refusal(tmp_path)


def test_of_a_dataset_with_splits_train_is_read(tmp_path):
    other = pa.table({"src": ["x"] * 3, "trg": ["judged"] * 3, "lang": ["de"] * 3})
    stream(tmp_path / "train" / "data-00000-of-00001.arrow", TABLE)
    stream(tmp_path / "train" / "cache-1f.arrow", other)
    stream(tmp_path / "unseen" / "data-00000-of-00001.arrow", other)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "unseen"]}))
    source = read(tmp_path)
    assert rows(source) == ROWS
    assert source.broken == {left_out("unseen/data-00000-of-00001.arrow"): 3}
    assert english(read(tmp_path / "unseen")) == ["judged"] * 3
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["unseen"]}))
    assert "has the splits unseen and no train" in refusal(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("[]")
    assert "expected a list of splits" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["test-00000.parquet", "validation/0.parquet", "news.dev.parquet"])
def test_splits_by_their_names(tmp_path, name):
    pq.write_table(TABLE, tmp_path / "train-00000.parquet")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    pq.write_table(TABLE[:1], tmp_path / name)
    source = read(tmp_path)
    assert rows(source) == ROWS
    assert source.broken == {left_out(name): 1}
    (tmp_path / "train-00000.parquet").unlink()
    assert rows(read(tmp_path)) == ROWS[:1]  # nothing else is there: it was meant


def test_splits_on_the_hub():
    memory = fsspec.filesystem("memory")
    for name, table in (("train-0", TABLE), ("test-0", TABLE[:1])):
        with memory.open(f"/datasets/someone/split/data/{name}.parquet", "wb") as file:
            pq.write_table(table, file)
    table, broken = _streamed(memory, "datasets/someone/split", COLUMNS, "hf://someone")
    left = left_out("/datasets/someone/split/data/test-0.parquet")
    assert (len(table), broken) == (2, {left: 1})
    table, broken = _streamed(
        memory, "datasets/someone/split/data/test-0.parquet", COLUMNS, "hf://someone"
    )
    assert (len(table), broken) == (1, {})
