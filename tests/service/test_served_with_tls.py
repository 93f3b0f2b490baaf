"""A server as it is operated: HTTPS, JSON lines, traces to a collector, asked by its own healthcheck."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys

import httpx
import pytest

from mexma.errors import InstallationError
from service.__main__ import _tls
from service.settings import Settings
from tests.conftest import ROOT, start_server, wait_until_ready
from tests.deploy.tools import tool
from tests.service.test_tracing import Collector


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory):
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=mexma",
            "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


def probe(port: str, **environment: object) -> int:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MEXMA_")}
    given = {f"MEXMA_{k.upper()}": str(v) for k, v in environment.items()}
    return subprocess.run(
        [sys.executable, "-m", "service.probe"],
        cwd=ROOT,
        env=kept | {"MEXMA_PORT": port} | given,
        check=False,
        capture_output=True,
    ).returncode


def test_a_server_with_everything_on(certificate, tmp_path):
    collector = Collector()
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    server = start_server(
        tmp_path, demo="false", tls_cert=cert, tls_key=key, log_format="json", access_log="true",
        otlp_endpoint=collector.url,
    )  # fmt: skip
    port = server.url.rsplit(":", 1)[1]
    server.url = server.url.replace("http://", "https://")
    while probe(port, tls_cert=cert) != 0:
        assert server.process.poll() is None, server.log.read_text()
    with httpx.Client(
        base_url=server.url, verify=ssl.create_default_context(cafile=cert)
    ) as client:
        answer = client.post("/v1/embeddings", json={"input": "violet"})
        assert answer.status_code == 200
        assert "server" not in answer.headers
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health/live")  # nobody vouches for the certificate
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url.replace('https', 'http')}/health/live")
    server.process.terminate()
    assert server.process.wait(60) == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [x for x in lines if x.get("route") == "/v1/embeddings"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == 200
    assert "violet" not in server.log.read_text()
    assert {"tokenize", "queue", "engine", "POST /v1/embeddings"} <= {
        span.name for span in collector.spans()
    }
    collector.close()


def test_the_healthcheck_says_no_where_nothing_answers(tmp_path):
    server = start_server(tmp_path, demo="false")
    port = server.url.rsplit(":", 1)[1]
    wait_until_ready(server)
    assert probe(port) == 0
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert probe(port) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_cert": "cert.pem"}, "go together"),
        ({"tls_cert": "cert.pem", "tls_key": "nowhere.pem"}, "cannot be used"),
        ({"tls_cert": "key.pem", "tls_key": "key.pem"}, "cannot be used"),
        ({"tls_cert": "cert.pem", "tls_key": "locked.pem"}, "cannot be used"),
    ],
)
def test_certificates_that_cannot_be_used_stop_the_start(settings, says, certificate):
    subprocess.run(
        [
            tool("openssl"), "ec", "-aes128", "-passout", "pass:secret",
            "-in", certificate / "key.pem", "-out", certificate / "locked.pem",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    with pytest.raises(InstallationError, match=says):
        _tls(Settings(**{k: certificate / v for k, v in settings.items()}))
