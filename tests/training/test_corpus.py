"""What is held out is not trained on, and what is forbidden is nowhere."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.corpus import open_corpus
from training.errors import DataError
from training.recipe import override
from training.recipes import tiny_cpu


def write(path, rows):
    table = pa.table(dict(zip(("src", "trg", "lang"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, path)
    return path


def opened(path, *settings):
    base = override(tiny_cpu(), [f"data={path}", "hold_out_fraction=0", "batch_pairs=1"])
    return open_corpus(override(base, settings))


@pytest.fixture
def data(tmp_path):
    rows = [(f"satz {i} {x}", f"sentence {i}", x) for i in range(200) for x in ("de", "nl")]
    return write(tmp_path / "train.parquet", rows)


def test_held_out_sentences_keep_all_their_translations_out(data):
    split = opened(data, "hold_out_fraction=0.2")
    trained = set(split.train.targets.to_pylist())
    judged = set(split.held_out["sentences"].targets.to_pylist())
    assert trained | judged == {f"sentence {i}" for i in range(200)}
    assert not trained & judged
    assert 20 < len(judged) < 60
    assert set(opened(data, "hold_out_fraction=0.2").train.targets.to_pylist()) == trained
    assert set(opened(data, "hold_out_fraction=0.2", "seed=2").train.targets.to_pylist()) != trained


def test_a_held_out_source_is_dropped_from_training(data, tmp_path):
    judge = write(tmp_path / "other.parquet", [("neu", "SENTENCE 3!", "de"), ("x", "unseen", "de")])
    split = opened(data, f"hold_out={judge}")
    assert len(split.held_out["other"]) == 2
    assert "sentence 3" not in split.train.targets.to_pylist()
    assert split.dropped == {"seen in held-out or forbidden sentences": 2}


def test_decontamination_ignores_case_and_punctuation(data, tmp_path):
    (tmp_path / "test.txt").write_text("Sentence 7.\nsatz 9 DE\n\n")
    split = opened(data, f"decontaminate={tmp_path / 'test.txt'}")
    assert len(split.train) == 400 - 2 - 1
    pairs = write(tmp_path / "test.parquet", [("Satz 9, DE", "Sentence 7", "de")])
    assert len(opened(data, f"decontaminate={pairs}").train) == 400 - 2 - 1
    with pytest.raises(DataError, match="expected a file of sentences"):
        opened(data, "decontaminate=missing.txt")


def test_no_source_drowns_the_others(data, tmp_path):
    rows = [(f"lause {i}", f"phrase {i}", "fi") for i in range(30)]
    rows += [(f"wort {i}", f"word {i}", "de") for i in range(500)]
    large = write(tmp_path / "large.parquet", rows)
    split = opened(f"{data},{large}", "most_per_source=40")
    counts = dict(zip(split.train.names, np.bincount(split.train.languages), strict=True))
    assert counts == {"de": 40 + 40, "nl": 40, "fi": 30}
    assert split.dropped == {"more than 40 of a language in a source": 2 * 160 + 460}
    texts = split.train.sources.to_pylist()
    assert texts == opened(f"{data},{large}", "most_per_source=40").train.sources.to_pylist()
    assert (
        texts != opened(f"{data},{large}", "most_per_source=40", "seed=2").train.sources.to_pylist()
    )
    words = [int(t.split()[1]) for t in texts if t.startswith("wort")]
    assert words == sorted(words) and max(words) > 40  # from the whole of it, in its order


def test_symbols_alone_are_not_all_the_same(tmp_path):
    path = write(tmp_path / "a.parquet", [("+", "+", "de"), ("a", "b", "de")])
    (tmp_path / "test.txt").write_text("!\n")
    assert len(opened(path, f"decontaminate={tmp_path / 'test.txt'}").train) == 2


def test_the_fingerprint_sees_every_change(data, tmp_path):
    base = opened(data).train.fingerprint
    assert base == opened(data).train.fingerprint
    rows = [(f"satz {i} {x}", f"sentence {i}", x) for i in range(200) for x in ("de", "nl")]
    rows[5] = ("satz 2 nL", *rows[5][1:])
    assert opened(write(tmp_path / "b.parquet", rows)).train.fingerprint != base


def test_a_corpus_smaller_than_a_batch(data):
    with pytest.raises(
        DataError, match=r"a batch has 512 pairs \(batch_pairs=\), but only 400 are left"
    ):
        opened(data, "batch_pairs=512")


def test_no_data_at_all():
    with pytest.raises(DataError, match="names no data"):
        open_corpus(override(tiny_cpu(), ["data="]))


def test_twins_of_held_out_sentences_are_not_trained_on(tmp_path):
    rows = [(f"satz {i}", f"sentence {i}", "de") for i in range(100)]
    rows += [(f"andere {i}", f"Sentence {i}!", "de") for i in range(100)]
    rows += [(f"+ {i}", "+" * i, "de") for i in range(1, 40)]  # symbols alone are no twins
    split = opened(write(tmp_path / "a.parquet", rows), "hold_out_fraction=0.3")
    judged = {t.lower().rstrip("!") for t in split.held_out["sentences"].targets.to_pylist()}
    trained = split.train.targets.to_pylist()
    assert not {t.lower().rstrip("!") for t in trained} & {j for j in judged if "s" in j}
    symbols = [t for t in split.held_out["sentences"].targets.to_pylist() if "+" in t]
    assert len([t for t in trained if "+" in t]) == 39 - len(symbols)
    left_out = len(rows) - len(trained) - len(split.held_out["sentences"])
    assert left_out > 10
    assert split.dropped == {"a held-out sentence but for case and punctuation": left_out}


def test_what_cannot_be_read_forbids_nothing_and_is_refused(data, tmp_path):
    (tmp_path / "test.tsv").write_text("src\ttrg\tlang\nsatz 9 de\tsentence 9\nx\ty\tde\n")
    with pytest.raises(DataError, match=r"would forbid nothing \(1 rows: wrong number of fields\)"):
        opened(data, f"decontaminate={tmp_path / 'test.tsv'}")


def test_all_splits_of_a_directory_forbid(data, tmp_path):
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets" / "train.parquet", [("a", "sentence 1", "de")])
    write(tmp_path / "sets" / "test.parquet", [("b", "sentence 2", "de")])
    split = opened(data, f"decontaminate={tmp_path / 'sets'}")
    assert split.dropped == {"seen in held-out or forbidden sentences": 4}


def test_forbidden_sentences_end_with_line_feeds_alone(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        [("a", "one\u2028two", "de"), ("b", "three", "de"), ("c", "d", "de")],
    )
    (tmp_path / "test.TXT").write_bytes("\ufeffThree\r\nOne\u2028two\r\n".encode())
    assert opened(path, f"decontaminate={tmp_path / 'test.TXT'}").train.targets.to_pylist() == ["d"]


def test_a_comma_in_a_path(tmp_path):
    path = write(tmp_path / "a,b.parquet", [("a", "b", "de")])
    with pytest.raises(DataError, match=r"a,b.parquet: commas separate places here; write \?"):
        opened(path)
    assert len(opened(str(path).replace(",", "?")).train) == 1
