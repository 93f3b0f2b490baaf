"""Alerts and dashboard, in a real Prometheus that scrapes the real service."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy import dashboard
from tests.conftest import ROOT, Server, free_port, start_server, wait_until_ready
from tests.deploy.tools import tool

ALERTS = ROOT / "deploy/chart/monitoring/alerts.yaml"
RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text(encoding="utf-8")
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
METRIC = re.compile(r"\b(?:mexma|process)_[a-z_]+\b")
WAIT_S = 120

# Series that make an alert fire, at the end of two hours of them a minute apart. What is not said
# is as in HEALTHY.
HEALTHY = {
    'up{job="mexma",instance="a"}': "1x180",
    'mexma_ready{job="mexma",instance="a"}': "1x180",
    'mexma_http_requests_total{job="mexma",instance="a",route="/embed",status="200"}': "0+600x180",
    'mexma_http_requests_total{job="mexma",instance="a",route="/embed",status="500"}': "0+1x180",
    'mexma_http_requests_total{job="mexma",instance="a",route="/embed",status="503"}': "0+1x180",
    # Probes of an instance that is starting are answered with 503, too.
    'mexma_http_requests_total{job="mexma",instance="a",route="/health/ready",status="503"}': "0+60x180",
    'mexma_queue_tokens{job="mexma",instance="a"}': "20000x180",
    'mexma_embedded_tokens_total{job="mexma",instance="a"}': "0+300000x180",
    'mexma_batches_total{job="mexma",instance="a",outcome="failed"}': "3x180",
    'mexma_engine_restarts_total{job="mexma",instance="a",reason="engine_stuck"}': "1x180",
    'mexma_truncated_items_total{job="mexma",instance="a"}': "0+1x180",
    'mexma_embedded_items_total{job="mexma",instance="a"}': "0+100x180",
    'mexma_encoder_info{job="mexma",instance="a",fingerprint="f"}': "1x180",
    'mexma_encoder_info{job="mexma",instance="b",fingerprint="f"}': "1x180",
    'mexma_collection_index{job="mexma",instance="a",collection="c",state="exact"}': "1x180",
    'mexma_collection_documents{job="mexma",instance="a",collection="c"}': "50000x180",
    'mexma_collection_recall{job="mexma",instance="a",collection="c"}': "0.99x180",
    'mexma_api_keys_valid{job="mexma",instance="a"}': "1x180",
    'mexma_refused_total{job="mexma",instance="a",reason="unknown_key"}': "0+30x180",
    'mexma_refused_total{job="mexma",instance="a",reason="audit"}': "2x180",
    'mexma_data_free_bytes{job="mexma",instance="a"}': "50x180",
    'mexma_data_bytes{job="mexma",instance="a"}': "100x180",
    'process_open_fds{job="mexma",instance="a"}': "100x180",
    'process_max_fds{job="mexma",instance="a"}': "1024x180",
}  # fmt: skip
FIRES: dict[str, dict[str, str]] = {
    "MexmaDown": {'up{job="mexma",instance="a"}': "0x180"},
    "MexmaNotReady": {'mexma_ready{job="mexma",instance="a"}': "0x180"},
    "MexmaErrors": {
        'mexma_http_requests_total{job="mexma",instance="a",route="/embed",status="500"}': "0+10x180"
    },
    "MexmaOverloaded": {
        'mexma_http_requests_total{job="mexma",instance="a",route="/embed",status="503"}': "0+10x180"
    },
    "MexmaQueueLong": {'mexma_queue_tokens{job="mexma",instance="a"}': "60000x180"},
    "MexmaBatchesFail": {
        'mexma_batches_total{job="mexma",instance="a",outcome="failed"}': "0x115 1x64"
    },
    "MexmaEngineRestarted": {
        'mexma_engine_restarts_total{job="mexma",instance="a",reason="engine_stuck"}': "1x100 2x79"
    },
    "MexmaTruncatesMuch": {'mexma_truncated_items_total{job="mexma",instance="a"}': "0+30x180"},
    "MexmaEncodersDiffer": {'mexma_encoder_info{job="mexma",instance="b",fingerprint="f"}': "_x180",
                            'mexma_encoder_info{job="mexma",instance="b",fingerprint="g"}': "1x180"},
    "MexmaCollectionCorrupt": {
        'mexma_collection_index{job="mexma",instance="a",collection="d",state="corrupt"}': "1x180"
    },
    "MexmaIndexNotBuilt": {
        'mexma_collection_documents{job="mexma",instance="a",collection="c"}': "50001x180"
    },
    "MexmaRecallLow": {'mexma_collection_recall{job="mexma",instance="a",collection="c"}': "0.9x180"},
    "MexmaBatchesDiffer": {'mexma_batch_invariance{job="mexma",instance="a"}': "0.99x180"},
    "MexmaKeysNotRead": {'mexma_api_keys_valid{job="mexma",instance="a"}': "0x180"},
    "MexmaUnknownKeys": {
        'mexma_refused_total{job="mexma",instance="a",reason="unknown_key"}': "0+120x180"
    },
    "MexmaNotRecorded": {
        'mexma_refused_total{job="mexma",instance="a",reason="audit"}': "0x115 1x64"
    },
    "MexmaDiskFull": {'mexma_data_free_bytes{job="mexma",instance="a"}': "9x180"},
    "MexmaFilesRunOut": {'process_open_fds{job="mexma",instance="a"}': "900x180"},
}  # fmt: skip


def names(text: str) -> set[str]:
    return set(METRIC.findall(text))


def test_the_dashboard_is_what_its_table_says():
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.text(), (
        "run: python -m deploy.dashboard"
    )


def test_no_panel_lies_over_another_and_each_is_told_apart():
    panels = dashboard.dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({p["id"] for p in panels}) == len(panels)
    assert len({p["title"] for p in panels}) == len(panels)


def test_every_alert_has_its_section_in_the_runbook_and_none_is_made_up():
    sections = re.findall(r"^### (Mexma\w+)", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in RULES)


def run_promtool(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules(tmp_path):
    assert f"{len(RULES)} rules found" in run_promtool(
        "check", "rules", str(ALERTS), folder=tmp_path
    )


@pytest.mark.parametrize("alert", [*FIRES, None])
def test_an_alert_fires_for_its_reason_and_no_other(alert, tmp_path):
    """By promtool: the series above for two hours, and what fires then. None: all is well."""
    assert set(FIRES) == {rule["alert"] for rule in RULES}
    series = HEALTHY | (FIRES[alert] if alert else {})
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "2h",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
                    if alert and alert != "MexmaEncodersDiffer"
                    else [{"labels": f'{{alertname="{alert}"}}', "value": 2}]  # one each
                    if alert
                    else [],
                }
            ],
        }
    ]
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["alerts.yaml"], "tests": tests})
    )
    # promtool knows ALERTS only by evaluating the rules, which it does for expressions as well.
    run_promtool("test", "rules", "test.yaml", folder=tmp_path)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, folder: Path, target: str):
        self.url = f"http://127.0.0.1:{free_port()}"
        scrape = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yaml").read_text())
        scrape["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        scrape["rule_files"] = [str(ALERTS)]
        scrape["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(scrape))
        with (folder / "prometheus.log").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=output,
                stderr=output,
            )

    def get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        response.raise_for_status()  # 503 until it has started
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.get("query", query=expression)["result"]

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if found := self.query(expression):
                    return found
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"nothing came for {expression}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default model with a collection just large enough for its hubness to be known."""
    made = start_server(
        tmp_path_factory.mktemp("served"),
        demo="false",
        language_sample_every=4,
        invariance_check_every=1,
    )
    wait_until_ready(made)
    httpx.put(f"{made.url}/v1/collections/small").raise_for_status()
    documents = [{"id": str(i), "text": f"Number {i}"} for i in range(210)]
    url = f"{made.url}/v1/collections/small/documents"
    httpx.post(url, json={"documents": documents}, timeout=300).raise_for_status()
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus that has scraped the server before, during and after some traffic."""
    made = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://"))
    try:
        made.wait_for("count_over_time(mexma_ready[1m]) > 1")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(5):
                texts = [f"Hyvää huomenta numero {i}" for i in range(40)] + ["long " * 600]
                client.post("/v1/embeddings", json={"input": texts}).raise_for_status()
                body = {"queries": ["two cats"], "k": 3}
                client.post("/v1/collections/small/search", json=body).raise_for_status()
                client.get("/nothing")
                client.post("/embed", headers={"origin": "https://elsewhere.example"})
                client.get("/health/ready").raise_for_status()
                # an increase needs readings between the requests
                made.wait_for(f"timestamp(mexma_ready) > {time.time()}")
        made.wait_for("increase(mexma_language_sampled_characters_total[1h]) > 0")
        seen = made.wait_for('mexma_http_requests_total{route="unmatched"} >= 5')[0]["value"][0]
        made.wait_for(f"timestamp(mexma_ready) > {float(seen) + 3}")
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


def test_every_name_in_alerts_dashboard_and_runbook_is_a_metric_of_the_service(server):
    exposed = names(httpx.get(f"{server.url}/metrics").text)
    listed = names((ROOT / "docs/metrics.md").read_text())
    for where in (ALERTS.read_text(), dashboard.text(), RUNBOOK):
        used = names(where)
        base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
        assert base <= listed | exposed, base - listed - exposed
    # What is exposed is documented, and the other way round where it has been used at all.
    series = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
    assert series <= listed, series - listed


# Nothing to be seen in a service that is well and has only small collections.
NOT_ALWAYS_THERE = {"Recall"}


@pytest.mark.parametrize(
    "panel", [p for row in dashboard.ROWS.values() for p in row], ids=lambda p: p.title
)
def test_every_panel_shows_something(panel, prometheus):
    for expression, _ in panel.queries:
        filled = (
            expression.replace("$here", dashboard.HERE)
            .replace("$job", ".*")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "30s")
        )
        found = prometheus.query(filled)
        assert found or panel.title in NOT_ALWAYS_THERE, filled
        assert all(sample["value"][1] not in ("+Inf", "-Inf") for sample in found), filled


def test_prometheus_evaluates_every_alert_and_none_fires_for_a_service_that_is_well(prometheus):
    prometheus.wait_for("count_over_time(mexma_ready[1m]) > 5")
    (group,) = prometheus.get("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
    firing = [rule["name"] for rule in group["rules"] if rule["state"] == "firing"]
    assert firing in ([], ["MexmaDiskFull"])  # the disk is this machine's, not the service's doing


def test_languages_and_their_fertility_are_counted(prometheus):
    by_language = {
        sample["metric"]["lang"]: float(sample["value"][1])
        for sample in prometheus.query(
            "sum by (lang) (mexma_language_sampled_tokens_total)"
            " / sum by (lang) (mexma_language_sampled_characters_total)"
        )
    }
    assert by_language["fi"] > 0
    assert all(0 < fertility < 10 for fertility in by_language.values())


def test_the_dashboard_s_variables_are_filled(prometheus):
    for variable in dashboard.dashboard()["templating"]["list"][1:]:
        metric, label = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", variable["definition"]
        ).groups()
        assert prometheus.get(f"label/{label}/values", **{"match[]": metric})


def test_files_that_grafana_is_given_say_where_the_dashboard_is():
    provider = yaml.safe_load(
        (ROOT / "deploy/monitoring/grafana/dashboards/mexma.yaml").read_text()
    )
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./chart/monitoring/dashboard.json:{folder}/mexma.json:ro" in mounts
    json.loads(dashboard.FILE.read_text())
