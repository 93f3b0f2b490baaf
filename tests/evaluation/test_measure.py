"""`mexma-evaluate` from files to tables and pictures, on tiny things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.measure import METRICS, Options
from evaluation.pairs import Pairs
from evaluation.report import Column, Table
from evaluation.subject import VectorTable, WordStates, open_subject
from mexma.sample import parallel_pairs
from tests.evaluation.spaces import unit

LANGUAGES = ("fi", "de")


class Fake:
    """Vectors by meaning (the pair's number) plus noise; states that know their words."""

    about = {"kind": "fake", "name": "fake", "fingerprint": "0"}  # noqa: RUF012
    truncated = 0
    has_token_states = True

    def __init__(self, data: dict[str, Pairs], noise: float):
        self.rng = np.random.default_rng(0)
        self.noise = noise
        self.meaning: dict[str, int] = {}
        for pairs in data.values():
            for i, (x, y) in enumerate(zip(pairs.source, pairs.target, strict=True)):
                self.meaning.setdefault(y, i)
                self.meaning.setdefault(x, self.meaning[y])
        self.space = np.random.default_rng(1).standard_normal((5000, 24))

    def vectors(self, texts):
        known = [self.meaning.setdefault(t, len(self.meaning) + 1000) for t in texts]
        noise = self.noise * self.rng.standard_normal((len(texts), 24))
        return unit(self.space[known] + noise)

    def token_states(self, sentences):
        return [
            WordStates(self.space[: len(words)].astype(np.float32), np.arange(len(words)))
            for words in sentences
        ]


def some_pairs(lang: str, n: int = 70) -> Pairs:
    source, target = (side[:n] for side in parallel_pairs(lang))
    return Pairs(list(source), list(target), [None] * len(source))


@pytest.fixture
def data() -> dict[str, Pairs]:
    return {lang: some_pairs(lang) for lang in LANGUAGES}


@pytest.mark.parametrize(
    ("metric", "column"),
    [("xsim", "src→trg margin"), ("xsim++", "margin"), ("tatoeba", "src→trg"), ("bucc", "F1")],
)
def test_every_retrieval_metric_fails_a_bad_encoder_and_shows_a_baseline(data, metric, column):
    means = []
    for noise in (0.1, 30):
        subject = Fake(data, noise)
        table = METRICS[metric](data, subject, VectorTable(subject), Options())
        names = [c.name for c in table.columns]
        assert any(c.baseline for c in table.columns)
        assert set(table.rows) | set(table.skipped) == set(LANGUAGES)
        (mean,) = [v for k, v in table.means.items() if k.startswith("mean")]
        value = mean[names.index(column)]
        means.append(
            value if table.columns[names.index(column)].better == "higher" else 100 - value
        )
    good, bad = means
    assert good > 80 > 30 > bad


def test_alignment_counts_words_with_gold_and_skips_those_without(data):
    data["de"].alignment[0] = " ".join(
        f"{i}-{i}"
        for i in range(min(len(data["de"].source[0].split()), len(data["de"].target[0].split())))
    )
    subject = Fake(data, 0)
    table = METRICS["alignment"](data, subject, VectorTable(subject), Options())
    assert list(table.rows) == ["de"]
    assert table.rows["de"][:4] == [1, 0, 100, 100]
    assert table.skipped == {"fi": "no gold links"}


def test_a_sentence_aligns_with_itself_word_by_word(tiny):
    """Through a real encoder, from words over pieces to links; and gold that is wrong shows."""
    subject = open_subject(str(tiny / "artifact"))
    texts = [t for t in parallel_pairs("fi")[0] if len(set(t.split())) == len(t.split()) > 2][:20]
    straight = [" ".join(f"{i}-{i}" for i in range(len(t.split()))) for t in texts]
    turned = [" ".join(f"{i}-{i - 1}" for i in range(1, len(t.split()))) for t in texts]
    for gold, errors in ((straight, 0), (turned, 100)):
        table = METRICS["alignment"](
            {"fi": Pairs(texts, texts, gold)}, subject, VectorTable(subject), Options()
        )
        row = dict(zip([c.name for c in table.columns], table.rows["fi"], strict=True))
        assert row["argmax AER"] == pytest.approx(errors, abs=6)
        assert row["diagonal AER"] == errors


def test_both_directions_of_xsim(data):
    subject = Fake(data, 2.0)
    vectors = VectorTable(subject)
    both = METRICS["xsim"](data, subject, vectors, Options(direction="both"))
    one = METRICS["xsim"](data, subject, vectors, Options(direction="forward"))
    back = METRICS["xsim"](data, subject, vectors, Options(direction="backward"))
    for lang in LANGUAGES:
        assert both.rows[lang] == one.rows[lang] + back.rows[lang][1:]


def test_a_table_in_markdown_and_json():
    table = Table("xsim", "A note.", [Column("pairs", digits=0), Column("error", "lower", 2)])
    table.rows = {"de": [10, 1.25], "fi": [30, None]}
    table.skipped = {"sv": "too few"}
    table.add_mean("mean", ["de"])
    table.add_mean("all")
    assert table.means == {"mean": [10.0, 1.25], "all": [20.0, None]}
    assert table.markdown() == (
        "## xsim\n\nA note.\n\n| | pairs | error ↓ |\n|---|---:|---:|\n"
        "| **mean** | **10** | **1.25** |\n| **all** | **20** | **** |\n"
        "| de | 10 | 1.25 |\n| fi | 30 |  |\n\nLeft out: sv: too few.\n"
    )
    assert table.to_dict()["languages"] == {
        "de": {"pairs": 10, "error": 1.25},
        "fi": {"pairs": 30, "error": None},
    }


def write_tsv(path: Path, n: int = 35) -> Path:
    lines = ["lang\tsrc\ttrg\talignment"]
    for lang in LANGUAGES:
        lines += [
            f"{lang}\t{x}\t{y}\t0-0"
            for x, y in zip(*(side[:n] for side in parallel_pairs(lang)), strict=True)
        ]
    path.write_text("\n".join([*lines, "sv\tHej!\tHello!\t"]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["artifact", "checkpoint"])
def test_the_command_measures_everything_and_writes_it(tiny, tmp_path, capsys, kind):
    data = write_tsv(tmp_path / "pairs.tsv")
    out = tmp_path / "out"
    assert main([str(tiny / kind), str(data), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    written = json.loads((out / "evaluation.json").read_text())
    assert [t["metric"] for t in written["tables"]] == list(METRICS)
    assert (out / "evaluation.md").read_text().strip() == printed.strip()
    assert written["subject"]["kind"] == kind
    assert written["subject"]["fingerprint"] in printed
    assert written["data"][0]["sha256"][:16] in printed
    assert written["circumstances"]["date"] in printed
    assert written["circumstances"]["packages"]["numpy"]
    assert "do not compare with published ones" in printed
    tables = {t["metric"]: t for t in written["tables"]}
    # One pair is a pool of its own: found, whatever the vectors; too few to mine or to spread.
    assert tables["xsim"]["languages"]["sv"]["src→trg margin"] == 0
    assert "sv" in tables["bucc"]["skipped"] and "sv" in tables["isotropy"]["skipped"]
    assert tables["alignment"]["skipped"] == {"sv": "no gold links"}
    for metric in METRICS:
        picture = out / f"{metric.replace('+', 'p')}.png"
        assert picture.read_bytes().startswith(b"\x89PNG"), metric


def test_the_same_again_gives_the_same(tiny, tmp_path, capsys):
    data = write_tsv(tmp_path / "pairs.tsv")
    arguments = [str(tiny / "artifact"), str(data), "--limit", "5", "--metric", "xsim", "bucc"]
    texts = []
    for _ in range(2):
        assert main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "alignment" not in texts[0] and "limit 5" in texts[0]


def test_refusals_are_one_sentence(tiny, tmp_path, capsys):
    data = write_tsv(tmp_path / "pairs.tsv")
    plain = tmp_path / "none.tsv"
    plain.write_text("lang\tsrc\ttrg\nfi\ta\tb\n")
    for arguments, message in (
        ([tmp_path / "nothing", data], "expected a checkpoint directory, an artifact directory"),
        ([tiny / "plain", tmp_path / "no.tsv"], "expected a file of pairs, found none"),
        ([tiny / "plain", data, "--metric", "alignment"], "expected token states"),
        ([tiny / "plain", plain, "--metric", "alignment"], "expected a column alignment"),
        ([tiny / "plain", data, "--out", data], f"{data}: File exists"),
        # Before anything is computed: there is nothing to compute.
        ([tiny / "none at all", data, "--out", data], f"{data}: File exists"),
        ([tiny / "plain", data, "--prefix", "q"], "an artifact, which has its own"),
        (["http://127.0.0.1:9", data, "--pooling", "mean"], "a service, which has its own"),
        ([tiny / "plain", data, "--model", "x"], "--model is for services"),
        ([tiny / "plain", data, "--languages", "xx"], "expected rows of language xx"),
    ):
        assert main([str(a) for a in arguments]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("mexma-evaluate: ") and message in said
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(data), "--limit", "0"])
    assert "expected 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(data), "--threads", "-1"])
    assert "expected 0 or more" in capsys.readouterr().err
