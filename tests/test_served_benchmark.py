"""`python -m benchmarks.served` in miniature: to its end, with what is not there named and nothing kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.circumstances import RESULTS, ROOT
from benchmarks.generators import Generator
from benchmarks.load import sentences
from benchmarks.served import LOADS, check
from benchmarks.subjects import Subject, peers
from mexma.artifact import open_artifact
from mexma.text import TextTokenizer
from service.settings import DEFAULT_MODEL
from tests.conftest import Server
from tests.tiny import tiny_artifact


def test_dry_run_with_an_interpreter_that_has_no_peer(tmp_path: Path):
    kept = set(RESULTS.iterdir())
    model = tiny_artifact(tmp_path / "artifact").path
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.served", "--model", str(model), "--peers", sys.executable,
         "--checkpoint", str(tmp_path / "none"), "--workers", "1", "--loads", "1x1,5x2", "--rounds", "1",
         "--seconds", "0.2", "--generators", "2", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = [f.read_text() for f in tmp_path.glob("served_64_*.md")]
    assert report in done.stdout
    assert "infinity (torch) is not installed beside python" in report
    assert "did not start: ModuleNotFoundError: No module named 'sentence_transformers'." in report
    assert str(ROOT) not in report
    for load in ("| 1 | 1 ", "| 5 | 2 "):
        assert f"{load}| mexma | " in report and f"{load}| mexma, 1 HTTP workers | " in report
    assert "failed)" not in report
    assert set(RESULTS.iterdir()) == kept


def test_texts_of_any_seed_cost_as_much():
    """Servers and the engine alone are compared by texts a second."""
    tokenizer = TextTokenizer(open_artifact(DEFAULT_MODEL).tokenizer_json(), max_tokens=512)
    made = {seed: sentences(2048, seed) for seed in (0, 3, 94, 31_415, 2_718_281)}
    lengths = [np.mean([len(t.ids) for t in tokenizer.encode(texts)]) for texts in made.values()]
    assert max(lengths) < 1.05 * min(lengths)
    assert len({text for texts in made.values() for text in texts}) == 5 * 2048


def test_the_report_needs_both_of_these_loads():
    for loads in LOADS.values():
        assert {(64, 1), (4, 64)} <= set(loads)


def test_one_generator_makes_load_after_load_from_several_processes(server: Server):
    generator = Generator()
    try:
        for clients, processes in ((5, 2), (1, 4)):
            found = generator.load(
                f"{server.url}/v1/embeddings", "--clients", clients, "--texts", 2, "--processes",
                processes, "--seconds", 0.3,
            )  # fmt: skip
            assert found["failed"] == 0
            assert found["requests"] >= clients  # each client sends one at least
            assert found["texts_per_s"] == pytest.approx(2 * found["requests_per_s"])
            assert 0 < found["busiest_generator"] <= 1.5
    finally:
        generator.close()


def test_a_generator_that_fails_is_an_error():
    generator = Generator()
    with pytest.raises(RuntimeError, match="the load generator failed"):
        generator.load("http://127.0.0.1:9/v1/embeddings")
    generator.close()


def test_processor_time_is_that_of_children_too():
    burn = "import os, time\nwhile time.process_time() < 0.2: pass\n"
    burn += "if os.fork(): time.sleep(600)\n"  # whose own time begins anew
    burn += "while time.process_time() < 0.2: pass\nprint('done', flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert Subject("both", "", process).cpu_s() >= 0.35
    finally:
        os.kill(int(child), 9)
        process.kill()
        process.wait()


@pytest.mark.parametrize("route", ["/v1/embeddings", "/nowhere"])
def test_a_peer_that_fails_or_computes_something_else_is_ended(server: Server, route: str):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    other = Subject("other", f"{server.url}{route}", process)
    subjects, notes = [other], list[str]()
    found = check(subjects, ["a text"], np.zeros((1, 384), np.float32), notes)
    assert found == ["other 0.00000" if route == "/v1/embeddings" else "other nan"]
    assert subjects == [] and "other computes something else" in notes[-1]
    assert ("404" in notes[0]) == (route == "/nowhere")
    assert process.poll() is not None


def test_a_peer_that_does_not_start_says_what_it_printed(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such thing: sentence_transformers' >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="no such thing: sentence_transformers"):
        peers(python, tmp_path, threads=1)


def test_arguments_travel_as_one_line(server: Server):
    line = json.dumps([f"{server.url}/v1/embeddings", "--clients", "1", "--seconds", "0.1"])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", "-"],
        input=f"{line}\n{line}\n", cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [json.loads(said)["failed"] for said in done.stdout.splitlines()] == [0, 0]
