"""Ctrl-C and SIGTERM, as the command line takes them: real processes that get real signals.

That a run which was stopped so ends as one that was not is in `test_resume.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.runlog import read_rows

# Tests may be run where SIGINT is ignored, and what they start would inherit that.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"

SLOW = ["tiny_cpu", "save_every=500", "validate_every=500", "keep_last=1", "pairs=320000"]

AT = """
import os, signal, sys
from training import {module}, __main__ as command
honest = {module}.{name}
def {name}(*arguments, **more):
    os.kill(os.getpid(), signal.{sent})
    return honest(*arguments, **more)
{module}.{name} = {name}
sys.exit(command.main(sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def started(out: Path) -> subprocess.Popen[str]:
    """A long run of which some steps are done."""
    script = HEARD + "import runpy; runpy.run_module('training', run_name='__main__')"
    command = [sys.executable, "-c", script, *SLOW, "--out", str(out)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not any(row["kind"] == "step" for row in read_rows(out)):
        assert process.poll() is None, process.communicate()[1]
    return process


def interrupted(
    where: str, name: str, sent: str, *arguments: str, heard: str = HEARD
) -> tuple[int, str]:
    """Status and stderr of a command that gets a signal when it calls `training.WHERE.NAME`."""
    script = heard + AT.format(module=where, name=name, sent=sent)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_after_its_step(tmp_path, sent):
    process = started(tmp_path / "run")
    process.send_signal(sent)
    error = process.communicate()[1]
    assert process.returncode == 128 + sent
    steps = [row["step"] for row in read_rows(tmp_path / "run") if row["kind"] == "step"]
    kept = {p.name for p in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {"step-00000000", f"step-{steps[-1]:08d}"}  # the start is the best as yet
    last = error.splitlines()[-1]
    assert last.startswith(f"mexma-train: stopped by {sent.name} after step {steps[-1]} of 10000; ")
    assert f"`mexma-train resume --out {tmp_path / 'run'}` goes on from there" in last
    assert "Traceback" not in error


def test_a_second_signal_ends_at_once(tmp_path):
    """The first comes within a step, the second before its end."""
    script = """
import os, signal, sys
from training import loop, __main__ as command
honest = loop.set_rate
def twice(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    return honest(*arguments)
loop.set_rate = twice
sys.exit(command.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *SLOW, "--out", str(tmp_path / "run")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 143
    assert "stopped by SIGTERM at once" in done.stderr
    assert [p.name for p in tmp_path.glob("run/checkpoints/*")] == ["step-00000000"]


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_before_anything_was_trained_nothing_is_promised(tmp_path, sent):
    arguments = [*SLOW, "--out", str(tmp_path / "run")]
    status, error = interrupted("loop", "open_corpus", sent, *arguments)
    assert status == 128 + signal.Signals[sent]
    assert error.splitlines()[-1] == f"mexma-train: stopped by {sent} before anything was trained"
    assert "Traceback" not in error


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_while_torch_is_imported(sent):
    script = f"""{HEARD}
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.{sent})
sys.meta_path.insert(0, Finder())
sys.argv = ["mexma-train", "tiny_cpu", "--out", "nowhere"]
runpy.run_module("training", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.Signals[sent]
    assert done.stderr == f"mexma-train: stopped by {sent} before anything was trained\n"


def test_before_the_first_step_of_a_run_it_can_be_gone_on_with(tmp_path):
    """While the start is judged, which takes a while with a larger model."""
    arguments = ["tiny_cpu", "--out", str(tmp_path / "run")]
    status, error = interrupted("loop", "validate", "SIGTERM", *arguments)
    assert status == 143
    assert "before a step was done" in error.splitlines()[-1]
    again = subprocess.run(
        [sys.executable, "-m", "training", "resume", "--out", str(tmp_path / "run")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_a_signal_that_the_process_was_started_to_ignore_is_ignored(tmp_path):
    """As SIGINT is in the background of a script, which Ctrl-C would end with it."""
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    arguments = ["tiny_cpu", "pairs=96", "--out", str(tmp_path / "run")]
    assert interrupted("loop", "set_rate", "SIGINT", *arguments, heard=deaf)[0] == 0
