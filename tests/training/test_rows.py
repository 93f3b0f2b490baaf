"""Tags are brought to one form, columns hold text."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.test_sources import read, refusal, rows
from training.rows import canonical_tag


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("de", "de"), (" de ", "de"), ("DE", "de"), ("pt_br", "pt-BR"), ("zh-hANT-tw", "zh-Hant-TW"),
        ("deu_Latn", "de-Latn"), ("ger", "de"), ("iw", "he"), ("cmn_Hans", "cmn-Hans"), ("es-419", "es-419"),
        ("de-x-AT", "de-x-at"), ("x-ours", "x-ours"), ("sr@latin", "sr-Latn"), ("sr_RS@latin", "sr-Latn-RS"),
        ("SRP@Latin", "sr-Latn"), ("ca@valencia", "ca-valencia"),
        ("german", None), ("jp", None), ("xx-DE", None), ("pt-BRA", None), ("de@", None), ("@latin", None),
        ("d", None), ("de-", None), ("de en", None), ("", None),
    ],
)  # fmt: skip
def test_canonical_tags(written, canonical):
    assert canonical_tag(written) == canonical


def test_one_language_however_its_tag_is_written(tmp_path):
    tags = ["de", "DE", " de ", "deu", "xx", "jp", "jp", " ", None]
    table = pa.table({"src": ["a"] * 9, "trg": ["b"] * 9, "lang": tags})
    pq.write_table(table, tmp_path / "a.parquet")
    source = read(tmp_path / "a.parquet")
    assert [lang for *_, lang in rows(source)] == ["de"] * 4
    assert source.broken == {
        "no language tag of BCP 47 such as 'de' ('jp': 'ja' may be meant, 'xx')": 3, "no language": 2,
    }  # fmt: skip


def test_columns_that_hold_no_text(tmp_path):
    pq.write_table(pa.table({"src": [1], "trg": ["b"], "lang": ["de"]}), tmp_path / "a.parquet")
    assert "column 'src' must hold text, found int64" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_type_of_text(tmp_path, kind):
    column = pa.array(["a", None], pa.string()).cast(kind)
    pq.write_table(
        pa.table({"src": column, "trg": ["b", "c"], "lang": ["de"] * 2}), tmp_path / "a.parquet"
    )
    source = read(tmp_path / "a.parquet")
    assert rows(source) == [("a", "b", "de")]
    assert source.broken == {"no text in src": 1}
