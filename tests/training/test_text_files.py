"""CSV, TSV and Moses as people have them: other encodings, quoted cells, long lines, gzip."""

from __future__ import annotations

import csv
import gzip

import pytest

from tests.training.test_sources import COLUMNS, read, refusal, rows

HEADER = "\t".join(COLUMNS) + "\n"
AWKWARD = [('Er sagte "ja"', "He said\nyes", "de"), ("a\tb", "plain", "fr"), ("ç", "c", "fr")]


def written(path, table, **options):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", **options)
        writer.writerow(COLUMNS)
        writer.writerows(table)
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_csv_wrote(tmp_path, quoting):
    source = read(written(tmp_path / "a.tsv", AWKWARD, quoting=quoting))
    assert rows(source) == AWKWARD
    assert source.broken == {}
    last = [("x", "y", "de"), ("first", "one\ntwo", "de")]
    for table in (last, [(trg, src, lang) for src, trg, lang in last]):
        assert rows(read(written(tmp_path / "b.tsv", table, quoting=quoting))) == table


def test_quotation_marks_that_are_only_that(tmp_path):
    """An opened one, a closed one, one within: no CSV, though lines are broken beside them."""
    lines = ['"Ja, sagte er.\t"Yes.\tde', 'Nein."\tNo."\tde', 'ein "W" da\ta "w" there\tde']
    (tmp_path / "a.tsv").write_text(
        HEADER + "\n".join([*lines, "two\tfields", '""\t""\tde']) + "\n"
    )
    source = read(tmp_path / "a.tsv")
    assert [row[0] for row in rows(source)] == ['"Ja, sagte er.', 'Nein."', 'ein "W" da', '""']
    assert source.broken == {"wrong number of fields": 1}
    (tmp_path / "b.tsv").write_text(HEADER + '"Ja."\t"Yes."\tde\ntwo\tfields\n')
    assert rows(read(tmp_path / "b.tsv")) == [('"Ja."', '"Yes."', "de")]


def test_quoted_headers_over_other_cells(tmp_path):
    (tmp_path / "a.tsv").write_text('"src"\t"trg"\t"lang"\nein "W"\tone\tde\n')
    assert "not all cells are as CSV writes them" in refusal(tmp_path / "a.tsv")
    assert "within a cell in line 2" in refusal(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text('"src"\t"trg"\t"lang"\nja\tyes\tde\n"nein\tno\tde\n')
    assert "the quotation mark in line 3 is never closed" in refusal(tmp_path / "b.tsv")


def test_another_encoding_is_refused_in_words(tmp_path):
    text = HEADER + "Guten Tag\tGood day\tde\nÄpfel\tapples\tde\nÖl\toil\tde\nGas\tgas\tde\n"
    (tmp_path / "a.tsv").write_bytes(text.encode("latin-1"))
    message = refusal(tmp_path / "a.tsv")
    assert "a.tsv, line 3: expected UTF-8, but 2 of 4 rows are not" in message
    (tmp_path / "news.de-en.de").write_bytes("Guten Tag\nÄpfel\n".encode("latin-1"))
    (tmp_path / "news.de-en.en").write_text("Good day\napples\n")
    assert "news.de-en.de, line 2: expected UTF-8" in refusal(tmp_path / "news.de-en")


def test_a_line_in_another_encoding_is_counted_as_that(tmp_path):
    good = "".join(f"Äpfel {i}\tapples\tde\n" for i in range(20))
    (tmp_path / "a.csv").write_bytes(
        (HEADER + good).replace("\t", ",").encode() + "Öl,oil,de\n".encode("latin-1")
    )
    source = read(tmp_path / "a.csv")
    assert len(rows(source)) == 20
    assert source.broken == {f"not UTF-8 (first in {tmp_path / 'a.csv'}, line 22)": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_called_by_its_name(tmp_path, encoding):
    for name in ("a.tsv", "news.de-en.de", "news.de-en.en"):
        (tmp_path / name).write_bytes((HEADER + "ja\tyes\tde\n").encode(encoding))
    for name in ("a.tsv", "news.de-en"):
        assert "is in UTF-16, and UTF-8 is expected" in refusal(tmp_path / name)


def test_a_line_longer_than_a_block(tmp_path):
    long = "wort " * 600_000
    (tmp_path / "a.tsv").write_text(f"{HEADER}ja\tyes\tde\n{long}\tword\tde\nzwei\tfelder\n")
    source = read(tmp_path / "a.tsv")
    assert [row[0] for row in rows(source)] == ["ja", long]
    assert source.broken == {"wrong number of fields": 1}
    (tmp_path / "a.csv").write_text(f'src,trg,lang\n"{long}\n{long}",two,de\n')
    assert [row[1] for row in rows(read(tmp_path / "a.csv"))] == ["two"]


@pytest.mark.parametrize("long", [1, 600_000])
def test_a_quotation_mark_that_swallows_the_rest(tmp_path, long):
    """Arrow takes all that follows for one cell."""
    for name, row in (("first", 'de,"nein,no'), ("last", 'de,nein,"no')):
        text = f"lang,src,trg\nde,ja,yes\n{row}\n" + "de,wort,word\n" * long
        (tmp_path / f"{name}.csv").write_text(text)
        assert "line 3 is never closed" in refusal(tmp_path / f"{name}.csv")
    (tmp_path / "within.csv").write_text('lang,src,trg\nde,ein "W" da,"a" w"\nde,"ja","yes"\n')
    assert [row[0] for row in rows(read(tmp_path / "within.csv"))] == ['ein "W" da', "ja"]


def test_suffixes_in_capitals_and_gzip(tmp_path):
    text = HEADER + "ja\tyes\tde\n"
    (tmp_path / "A.TSV").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.replace("\t", ",").encode()))
    (tmp_path / "b.tsv.GZ").write_bytes(gzip.compress(text.encode()))
    for name, called in (("A.TSV", "A"), ("a.csv.gz", "a"), ("b.tsv.GZ", "b")):
        source = read(tmp_path / name)
        assert (source.name, rows(source)) == (called, [("ja", "yes", "de")])
    packed = gzip.compress((text * 1000).encode())
    for broken in (packed[:40], b"no gzip at all"):
        (tmp_path / "cut.tsv.gz").write_bytes(broken)
        assert "cut.tsv.gz: cannot be read" in refusal(tmp_path / "cut.tsv.gz")


def test_moses_as_windows_writes_it(tmp_path):
    (tmp_path / "a.de-en.de").write_bytes(b"\xef\xbb\xbfGuten Tag\r\nJa\r\n")
    (tmp_path / "a.de-en.en").write_bytes(b"\xef\xbb\xbfGood day\nYes")
    assert rows(read(tmp_path / "a.de-en")) == [
        ("Guten Tag", "Good day", "de"),
        ("Ja", "Yes", "de"),
    ]


@pytest.mark.parametrize(
    ("name", "side", "english", "tag"),
    [
        ("news.pt-BR-en", "pt-BR", "en", "pt-BR"),
        ("news.en-zh_Hant", "zh_Hant", "en", "zh-Hant"),
        ("news.de-en-GB", "de", "en-GB", "de"),
        ("news.en-US-sr-Latn", "sr-Latn", "en-US", "sr-Latn"),
        ("news.v2.DE-en", "DE", "en", "de"),
    ],
)
def test_moses_names_with_subtags(tmp_path, name, side, english, tag):
    (tmp_path / f"{name}.{side}").write_text("foreign\n")
    (tmp_path / f"{name}.{english}").write_text("English\n")
    assert rows(read(tmp_path / name)) == [("foreign", "English", tag)]
    assert rows(read(tmp_path)) == [("foreign", "English", tag)]


def test_moses_without_english(tmp_path):
    for side in ("de", "fr"):
        (tmp_path / f"news.de-fr.{side}").write_text("x\n")
    message = refusal(tmp_path / "news.de-fr")
    assert "one side must be English" in message and "news.de-en" in message
