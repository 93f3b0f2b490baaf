"""A run from recipe to report: its golden curve, its artifact, and everything that goes wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mexma.checkpoint import open_checkpoint
from mexma.errors import MexmaError
from model_export.__main__ import main as export
from tests.tiny import tiny_checkpoint
from training import loop, model, run_state
from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.errors import NonFiniteLoss, RunStateError
from training.loop import open_backbone, train
from training.miniature import MAX_TOKENS
from training.ranks import Ranks
from training.recipe import override
from training.recipes import tiny_cpu
from training.runlog import read_rows

HERE = Ranks(0, 1, torch.device("cpu"))
GOLDEN = json.loads((Path(__file__).parent / "tiny_cpu_losses.json").read_text())
SHORT = ["pairs=96", "batch_pairs=8", "save_every=2", "validate_every=3"]  # 6 steps


def short(out: Path, *settings: str, **options) -> Path:
    recipe = override(override(tiny_cpu(), SHORT), settings)
    return train(recipe, out, HERE, quiet=True, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """`mexma-train tiny_cpu`, as the command line runs it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    torch.set_num_threads(1)
    assert main(["tiny_cpu", "--out", str(out)]) == 0
    return out


def test_the_golden_loss_curve(finished):
    """Committed numbers. 1e-4: other processors add up in another order, and 30 steps carry it on."""
    rows = [r for r in read_rows(finished) if r["kind"] == "step"]
    assert len(rows) == len(GOLDEN) == 30
    for row, loss in zip(rows, GOLDEN, strict=True):
        assert row["loss"] == pytest.approx(loss, rel=1e-4), row["step"]


def test_what_a_run_leaves_behind(finished):
    description = open_checkpoint(finished / "final")
    assert (description.step, description.pooling) == (30, "mean")
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())][-2:] == [
        "step-00000020", "step-00000030",
    ]  # fmt: skip
    scores = [(-r["score"], r["step"]) for r in read_rows(finished) if r["kind"] == "validation"]
    assert open_checkpoint(finished / "best").step == min(scores)[1]
    assert [step for _, step in scores] == [0, 15, 30]
    # Training cut texts at the recipe's 32; whoever is served by it shall not find theirs cut so.
    assert description.max_tokens == MAX_TOKENS > tiny_cpu().max_tokens
    assert list((finished / "tensorboard").iterdir())
    report = (finished / "report.md").read_text()
    for picture in ("losses.png", "languages-0.png"):
        assert f"({picture})" in report
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
    assert '"batch_pairs": 16' in report
    kinds = {r["kind"] for r in read_rows(finished)}
    assert kinds == {"step", "validation", "note"}


def test_mexma_export_reads_it(finished, tmp_path):
    arguments = [
        str(finished / "final"),
        str(tmp_path / "artifact"),
        "--sentences-per-language",
        "2",
    ]
    assert export(arguments) == 0


def test_where_nothing_was_better_the_best_is_the_start(tmp_path, monkeypatch):
    def judged(name: str, *scores: float) -> Path:
        """By the recipe after steps 0, 3 and 6."""
        coming = iter(scores)
        monkeypatch.setattr(loop, "score_of", lambda _: next(coming))
        return short(tmp_path / name, "keep_last=1").parent

    run = judged("worse", 0.5, 0.25, 0.5)
    assert (run / "best").readlink() == Path("checkpoints/step-00000000")
    start = open_backbone(override(tiny_cpu(), SHORT)).encoder.state_dict()
    best = load_checkpoint(str(run / "best")).encoder.state_dict()
    assert [name for name in start if not torch.equal(best[name], start[name])] == []
    [note] = [r for r in read_rows(run) if "nothing was better" in r.get("text", "")]
    assert note["step"] == 6
    said = "nothing was better than the start (50.00% of held-out pairs found): best is the start"
    assert note["text"].startswith(said)
    assert note["text"] in (run / "report.md").read_text()
    assert export([str(run / "best"), str(tmp_path / "a"), "--sentences-per-language", "2"]) == 0

    run = judged("better", 0.5, 0.25, 0.75)
    assert (run / "best").readlink() == Path("checkpoints/step-00000006")
    assert not (run / "checkpoints/step-00000000").exists(), "its turn is over"
    assert not any("nothing was better" in r.get("text", "") for r in read_rows(run))

    run = judged("worse at the end", 0.5, 0.75, 0.25)
    assert (run / "best").readlink() == Path("checkpoints/step-00000003")
    said = "step 3 found most held-out pairs (75.00%): best is that checkpoint, final is the end"
    assert said in (run / "report.md").read_text()


def test_a_run_is_not_overwritten(finished, tmp_path, capsys):
    assert main(["tiny_cpu", "--out", str(finished)]) == 1
    error = capsys.readouterr().err
    assert "holds a finished run already; to train it further give backbone=" in error
    begun = tmp_path / "begun"
    short(begun)
    shutil.rmtree(begun / "final")
    assert main(["tiny_cpu", "--out", str(begun)]) == 1
    assert "holds a run already; resume it" in capsys.readouterr().err


def test_a_run_has_one_process_at_a_time(tmp_path, capsys):
    out = tmp_path / "run"
    said = []

    def second(point: str) -> None:
        if point == "step 2":
            for words in (["tiny_cpu"], ["resume"]):
                assert main([*words, "--out", str(out)]) == 1
                said.append(capsys.readouterr().err)

    short(out, reached=second)
    for line in said:
        assert line.startswith(f"mexma-train: {out}: process {os.getpid()} trains there; stop it")
        assert line.count("\n") == 1
    assert len(said) == 2
    assert len([r for r in read_rows(out) if r["kind"] == "step"]) == 6
    short(out, resume=True)  # given back


def test_a_place_where_no_run_can_be_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", Path("/proc/none")):
        for words in (["tiny_cpu"], ["resume"]):
            assert main([*words, "--out", str(out)]) == 1
            error = capsys.readouterr().err
            assert str(out) in error
            assert error.count("\n") == 1


def test_resume_refuses_what_would_change_the_run(finished, tmp_path, capsys):
    # a setting is taken on either side of --out
    assert main(["resume", "--out", str(finished), "clip=2"]) == 1
    assert "clip cannot be changed on resuming" in capsys.readouterr().err
    assert main(["resume", "--out", str(finished), "pairs=9600"]) == 1
    assert f"give backbone={finished / 'final'}, once it is there" in capsys.readouterr().err
    assert main(["tiny_cpu", f"backbone={finished}", "--out", str(tmp_path / "new")]) == 1
    assert "a run's weights are in its final and best" in capsys.readouterr().err
    assert main(["resume", "--out", str(tmp_path)]) == 1
    assert "expected this file of the run to resume" in capsys.readouterr().err


def notes_of(out: Path, *settings: str) -> str:
    short(out, *settings)
    return "\n".join(r["text"] for r in read_rows(out) if r["kind"] == "note")


def test_the_first_lines_say_how_often_what_is_read_and_what_judges(tmp_path):
    few = tmp_path / "few.tsv"
    rows = [f"Satz Nummer {i}\tsentence number {i}\tde\n" for i in range(40)]
    few.write_text("src\ttrg\tlang\n" + "".join(rows))

    said = notes_of(tmp_path / "often", f"data={few}", "hold_out_fraction=0.2", "pairs=960")
    assert "the run passes" in said
    assert "held-out part sentences has " in said
    assert "too few to choose a checkpoint by" in said

    said = notes_of(tmp_path / "rounded", "pairs=5", "hold_out_fraction=0")
    assert "pairs=5 is 8: whole batches of 8" in said
    assert "nothing is held out: no best checkpoint is chosen" in said
    assert not (tmp_path / "rounded/best").exists()

    said = notes_of(tmp_path / "plain")
    assert " passes in 6 steps of 2 x 8 pairs; held out: sentences 228" in said
    for warning in ("the run passes", "too few", "no best", "pairs="):
        assert warning not in said


def test_what_takes_long_is_said_before_it_is_done(tmp_path, capsys):
    arguments = ["tiny_cpu", *SHORT, "centre_texts=20", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    stages = [
        "reading phrases",
        "loading the backbone miniature",
        "taking out what",
        "judging the start",
    ]
    places = [error.index(stage) for stage in [*stages, "step 0: "]]
    assert places == sorted(places)
    assert not any("…" in r.get("text", "") for r in read_rows(tmp_path / "run"))


def test_texts_that_have_room_for_no_word_are_refused(tmp_path, capsys):
    assert main(["tiny_cpu", "max_tokens=1", "--out", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "mexma-train: max_tokens must exceed the 2 special tokens, got 1"


def test_the_average_with_the_start(tmp_path):
    start = tmp_path / "start"
    short(tmp_path / "trained")
    short(tmp_path / "half", "average_with_start=0.5")
    short(tmp_path / "none", "average_with_start=1")
    trained, half, none = (
        load_file(tmp_path / n / "final" / "model.safetensors") for n in ("trained", "half", "none")
    )
    assert not start.exists()
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (trained[name] + none[name]) / 2)
    # What the run goes on with is not averaged.
    a, b = (
        load_file(tmp_path / n / "checkpoints/step-00000006/model.safetensors")
        for n in ("trained", "half")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_precisions_and_recomputing_train(tmp_path):
    losses = {}
    for name, settings in {
        "fp32": [], "bf16": ["precision=bf16"], "fp16": ["precision=fp16"],
        "recompute": ["recompute=true"], "padded": ["attention=padded"],
    }.items():  # fmt: skip
        short(tmp_path / name, "dropout=0", "pairs=32", *settings)
        losses[name] = [r["loss"] for r in read_rows(tmp_path / name) if r["kind"] == "step"]
    assert losses["recompute"] == losses["fp32"]
    assert losses["padded"] == pytest.approx(losses["fp32"], rel=1e-5)
    for low in ("bf16", "fp16"):
        assert losses[low] == pytest.approx(losses["fp32"], rel=1e-2)


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path, monkeypatch):
    honest = model.koleo
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        return honest(*arguments) * (torch.inf if len(calls) > 16 else 1)  # two a batch: step 4

    monkeypatch.setattr(model, "koleo", poisoned)
    with pytest.raises(
        NonFiniteLoss, match=r"step 4: the loss is not finite .* sample ids \[\d+, "
    ):
        short(tmp_path / "run")
    monkeypatch.setattr(model, "koleo", honest)
    short(tmp_path / "run", resume=True)  # from step 4, nothing poisoned was kept
    short(tmp_path / "clean")
    a, b = (load_file(tmp_path / n / "final" / "model.safetensors") for n in ("run", "clean"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_full_disk_during_a_save_loses_no_checkpoint(tmp_path, monkeypatch):
    honest = run_state.save_file
    saves = []

    def full(tensors, path):
        saves.append(path)
        if len(saves) > 3:  # head and optimiser of the first save, head of the second
            Path(path).write_bytes(b"some of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        honest(tensors, path)

    monkeypatch.setattr(run_state, "save_file", full)
    with pytest.raises(RunStateError) as caught:
        short(tmp_path / "run", "keep_last=1", "hold_out_fraction=0")
    message = str(caught.value)
    assert "step-00000004: cannot be saved" in message
    assert "No space left" in message
    assert "the run can go on from" in message
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(run_state, "save_file", honest)
    assert short(tmp_path / "run", "keep_last=1", "hold_out_fraction=0", resume=True).is_dir()


def test_a_damaged_checkpoint_is_passed_over_and_said_to_be(tmp_path, capsys):
    short(tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-00000006"
    expected = (newest / "optimiser.safetensors").read_bytes()
    (newest / "optimiser.safetensors").write_bytes(expected[:-1] + b"?")
    assert main(["resume", "--out", str(tmp_path / "run")]) == 0
    notes = [r["text"] for r in read_rows(tmp_path / "run") if r["kind"] == "note"]
    [note] = [text for text in notes if "damaged" in text]
    assert str(newest / "optimiser.safetensors") in note
    assert note.endswith("goes on from step 4")
    assert note in capsys.readouterr().err
    assert (newest / "optimiser.safetensors").read_bytes() == expected
    for path in (tmp_path / "run/checkpoints").iterdir():
        (path / "training.json").write_text("{")
    with pytest.raises(RunStateError, match=r"no checkpoint is intact; the newest: .*006"):
        short(tmp_path / "run", resume=True)


def test_other_data_or_another_architecture_is_refused(tmp_path):
    short(tmp_path / "run")
    with pytest.raises(RunStateError, match="corpus with fingerprint"):
        short(tmp_path / "run", "hold_out_fraction=0.2", resume=True)
    with pytest.raises(RunStateError, match="pooling mean, but this run's has first_token"):
        short(tmp_path / "run", "pooling=first_token", resume=True)
    with pytest.raises(RunStateError, match=r"head\.layers\.1.* found none"):
        short(tmp_path / "run", "head_layers=2", resume=True)
    tiny_checkpoint(tmp_path / "other")
    with pytest.raises(MexmaError, match=r"started from other weights|tokenizer has none"):
        short(tmp_path / "run", f"backbone={tmp_path / 'other'}", resume=True)


def test_data_that_lies_elsewhere_is_taken_where_it_is_the_same(tmp_path, capsys):
    """Another machine, another mount. What it is called there and how it is packed is no matter."""
    there, here, out = tmp_path / "there", tmp_path / "here", tmp_path / "run"
    there.mkdir()
    words = [f"sentence number {i}" for i in range(240)]
    for name, some in {"train.tsv": words[:200], "judge.tsv": words[200:]}.items():
        rows = [f"Satz {text}\t{text}\tde\n" for text in some]
        (there / name).write_text("src\ttrg\tlang\n" + "".join(rows))
    (there / "never.txt").write_text(words[7] + "\n")
    places = {"data": "train.tsv", "hold_out": "judge.tsv", "decontaminate": "never.txt"}
    begun = [f"{key}={there / name}" for key, name in places.items()]

    def stop(point: str) -> None:
        if point == "step 4":
            raise RunStateError("as asked")

    with pytest.raises(RunStateError, match="as asked"):
        short(out, *begun, "hold_out_fraction=0", reached=stop)
    short(tmp_path / "whole", *begun, "hold_out_fraction=0")
    there.rename(here)
    assert main(["resume", "--out", str(out)]) == 1
    missing = (
        f"{there / 'train.tsv'}: expected this file, found none; what lies elsewhere now is told"
    )
    assert f"{missing} with data=, hold_out=, decontaminate=, backbone=" in capsys.readouterr().err
    (here / "judge.tsv").rename(here / "other.tsv")
    whole = (here / "train.tsv").read_text().splitlines(keepends=True)
    (here / "fewer.tsv").write_text("".join(whole[:-1]))
    moved = [f"{key}={here / name.replace('judge', 'other')}" for key, name in places.items()]

    other = {
        "data": (f"data={here / 'fewer.tsv'}", "trained on a corpus with fingerprint "),
        "hold_out": ("hold_out=", "judged by held-out pairs with fingerprint "),
        "decontaminate": ("decontaminate=", "trained on a corpus with fingerprint "),
    }
    for key, (setting, says) in other.items():
        wrong = [setting, *[m for m in moved if not m.startswith(key)]]
        assert main(["resume", "--out", str(out), *wrong]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.search(says + r"[0-9a-f]{16}, but the data now has [0-9a-f]{16};", error), error
        assert json.loads((out / "recipe.json").read_text())["data"] == [str(there / "train.tsv")]

    assert main(["resume", "--out", str(out), *moved]) == 0
    assert main(["resume", "--out", str(out)]) == 0  # it is known where they lie
    assert "all 6 steps are done; to train further give backbone=" in capsys.readouterr().err
    a, b = (load_file(path / "final/model.safetensors") for path in (out, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    said = [r["text"] for r in read_rows(out) if "now lies elsewhere" in r.get("text", "")]
    assert len(said) == 1
    assert str(here / "train.tsv") in said[0]


def test_a_backbone_that_lies_elsewhere_is_taken_where_it_is_the_same(finished, tmp_path, capsys):
    there, here, out = tmp_path / "there", tmp_path / "here", tmp_path / "run"
    shutil.copytree(finished / "final", there)

    def stop(point: str) -> None:
        if point == "step 4":
            raise RunStateError("as asked")

    with pytest.raises(RunStateError, match="as asked"):
        short(out, f"backbone={there}", reached=stop)
    there.rename(here)
    assert main(["resume", "--out", str(out)]) == 1
    assert "what lies elsewhere now is told with" in capsys.readouterr().err
    other = min((p for p in (finished / "checkpoints").iterdir()), key=lambda p: p.name)
    assert main(["resume", "--out", str(out), f"backbone={other}"]) == 1
    assert "started from other weights" in capsys.readouterr().err
    assert main(["resume", "--out", str(out), f"backbone={here}"]) == 0
    assert json.loads((out / "recipe.json").read_text())["backbone"] == str(here)


def test_bad_data_from_the_command_line(tmp_path, capsys):
    (tmp_path / "empty.tsv").touch()
    (tmp_path / "few.tsv").write_text("src\ttrg\tlang\nJa\tYes\tde\n")
    (tmp_path / "columns.tsv").write_text("src\ttrg\nJa\tYes\n")
    for name, message in {
        "empty": "is empty", "few": "a batch has 16 pairs (batch_pairs=), but only 1 are left",
        "columns": "expected a column 'lang', found src, trg",
    }.items():  # fmt: skip
        data = f"data={tmp_path / name}.tsv"
        assert main(["tiny_cpu", data, "hold_out_fraction=0", "--out", str(tmp_path / "r")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("mexma-train: ") == 1
        assert "Traceback" not in error
    assert main(["tiny_cpu", "device=cuda", "--out", str(tmp_path / "r")]) == (
        0 if torch.cuda.is_available() else 1
    )
