"""The OpenAPI document against the service that it describes, asked by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from service.security.keys import new_key, write_keys
from tests.conftest import ROOT, start_server, wait_until_ready

HERE = Path(__file__).parent


def test_schemathesis_finds_nothing(tmp_path):
    """All of its checks and phases, with the demo and with keys. Its seed is fixed: the search for what
    nobody has thought of is `-n 1000` by hand."""
    given, key = new_key("schemathesis", "admin")
    write_keys(tmp_path / "keys.json", [key])
    server = start_server(tmp_path, api_keys_file=tmp_path / "keys.json", body_timeout_s=5)
    try:
        wait_until_ready(server)
        outcome = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "--config-file", HERE / "schemathesis.toml",
                "run", f"{server.url}/openapi.json",
                "--header", f"authorization: Bearer {given}",
                "--checks", "all", "--max-examples", "5", "--seed", "1", "--no-color",
            ],
            check=False,
            cwd=tmp_path,
            env=os.environ
            | {"SCHEMATHESIS_HOOKS": f"{__package__}.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )  # fmt: skip
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "Traceback" not in server.log.read_text()
