"""Grafana's dashboard, from a table of panels: `python -m deploy.dashboard` writes it anew.

`tests/deploy/test_monitoring.py` fails when the file is not what this says, and runs every
query against a Prometheus that has scraped the service.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "chart" / "monitoring" / "dashboard.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = '{job=~"$job",instance=~"$instance"}'
WIDTH, HEIGHT = 8, 7  # three to a row of 24


class Panel(NamedTuple):
    """unit: Grafana's name for it. queries: PromQL and legend; `$here` is the selection above."""

    title: str
    unit: str
    what: str
    queries: list[tuple[str, str]]
    kind: str = "timeseries"


def quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    """The median and the 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        (f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket$here"
         "[$__rate_interval])))", f"p{round(q * 100)}{legend}")
        for q in (0.5, 0.99)
    ]  # fmt: skip


def per_second(metric: str, by: str = "") -> str:
    return f"sum by ({by}) (rate({metric}$here[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Is it well": [
        Panel("Ready", "none", "1: /health/ready last said yes", [
            ("mexma_ready$here", "{{instance}}")], "stat"),
        Panel("Encoders served", "none", "One fingerprint, unless a model is being rolled out", [
            ("count by (name, fingerprint) (mexma_encoder_info$here)", "{{name}} {{fingerprint}}")], "stat"),
        Panel("Disk that is free", "percentunit", "Of the file system that holds collections", [
            ("mexma_data_free_bytes$here / mexma_data_bytes$here", "{{instance}}")], "stat"),
    ],
    "Requests": [
        Panel("Requests a second", "reqps", "By route", [
            (per_second("mexma_http_requests_total", "route"), "{{route}}")]),
        Panel("Answers other than 200", "reqps", "499: the client left; 503: full or not ready", [
            ('sum by (status) (rate(mexma_http_requests_total{job=~"$job",instance=~"$instance",'
             'status!~"2.."}[$__rate_interval]))', "{{status}}")]),
        Panel("Refused", "reqps", "For keys, roles, origins, quotas", [
            (per_second("mexma_refused_total", "reason"), "{{reason}}")]),
        Panel("Time of a request", "s", "First byte in to last byte out", quantiles(
            "mexma_http_request_seconds", "route")),
    ],
    "Queue and engine": [
        Panel("Waiting", "none", "Tokens in the queue: what the autoscaler looks at", [
            ("mexma_queue_tokens$here", "tokens {{instance}}"),
            ("mexma_queue_items$here", "texts {{instance}}")]),
        Panel("Tokens embedded", "none", "Per second, and of them padding", [
            (per_second("mexma_embedded_tokens_total", "instance"), "{{instance}}"),
            (per_second("mexma_padding_tokens_total", "instance"), "padding {{instance}}")]),
        Panel("Where a request's time goes", "s", "Tokenising, waiting, and the engine's batches", quantiles(
            "mexma_stage_seconds", "stage")),
        Panel("Time of a batch", "s", "On the engine", quantiles("mexma_batch_seconds")),
        Panel("Texts in a batch", "none", "Higher under load", quantiles("mexma_batch_items")),
        Panel("Tokens in a batch", "none", "Padding included; bounded by MEXMA_MAX_BATCH_TOKENS",
              quantiles("mexma_batch_tokens")),
        Panel("Batches", "ops", "A failed one is run again text by text", [
            (per_second("mexma_batches_total", "outcome"), "{{outcome}}")]),
        Panel("Batch invariance", "none", "Least cosine of a text's vector in a batch to that alone", [
            ("mexma_batch_invariance$here", "{{instance}} {{fingerprint}}")]),
        Panel("Texts", "none", "Embedded per second, and of them cut", [
            (per_second("mexma_embedded_items_total", "instance"), "{{instance}}"),
            (per_second("mexma_truncated_items_total", "instance"), "cut {{instance}}")]),
        Panel("Texts spared", "none", "Per second: cached, or computed for another request already", [
            (per_second("mexma_spared_items_total", "by"), "{{by}}")]),
        Panel("Cache", "bytes", "Vectors kept", [("mexma_cache_bytes$here", "{{instance}}")]),
        Panel("Memory", "bytes", "Resident", [("process_resident_memory_bytes$here", "{{instance}}")]),
        Panel("Processor", "none", "Cores in use", [
            (per_second("process_cpu_seconds_total", "instance"), "{{instance}}")]),
        Panel("Open files", "none", "Connections among them", [
            ("process_open_fds$here", "{{instance}}"), ("process_max_fds$here", "limit {{instance}}")]),
    ],
    "Languages": [
        Panel("Texts by language", "none", "Per second, estimated from a sample", [
            (f"topk(15, {per_second('mexma_language_items_total', 'lang')})", "{{lang}}")]),
        Panel("Fertility", "none", "Tokens a character, by language: what it costs here", [
            ("topk(15, sum by (lang) (increase(mexma_language_sampled_tokens_total$here[1h]))"
             " / (sum by (lang) (increase(mexma_language_sampled_characters_total$here[1h])) > 0))",
             "{{lang}}")], "bargauge"),
    ],
    "Collections": [
        Panel("Documents", "none", "", [("mexma_collection_documents$here", "{{collection}}")]),
        Panel("Searches", "none", "Queries per second", [
            (per_second("mexma_searches_total", "collection, score"), "{{collection}} {{score}}")]),
        Panel("Time of a search", "s", "In the store", quantiles("mexma_search_seconds")),
        Panel("Recall", "percentunit", "Of approximate searches, against the exact answer", [
            ("mexma_collection_recall$here", "{{collection}}")]),
        Panel("Hubness", "none", "1.4 to 5 is strong: prefer margin scores", [
            ("mexma_collection_hubness$here", "{{collection}}")]),
        Panel("Index", "none", "exact, building, approximate or corrupt", [
            ("mexma_collection_index$here == 1", "{{collection}} {{state}}")], "table"),
    ],
}  # fmt: skip


def variable(name: str, label: str) -> dict[str, Any]:
    """A selection at the top, filled from a label of the service's series."""
    query = f"label_values(mexma_ready, {label})"
    return {
        "name": name, "label": name, "type": "query", "datasource": DATASOURCE, "refresh": 2,
        "query": {"query": query, "refId": name}, "definition": query,
        "includeAll": True, "multi": True, "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
        })  # fmt: skip
        y += 1
        for i, panel in enumerate(members):
            panels.append({
                "id": len(panels) + 1, "type": panel.kind, "title": panel.title,
                "description": panel.what, "datasource": DATASOURCE,
                "gridPos": {"h": HEIGHT, "w": WIDTH, "x": i % 3 * WIDTH, "y": y + i // 3 * HEIGHT},
                "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + n), "expr": expr.replace("$here", HERE), "legendFormat": legend,
                     "datasource": DATASOURCE, "instant": panel.kind in ("table", "stat", "bargauge"),
                     **({"format": "table"} if panel.kind == "table" else {})}
                    for n, (expr, legend) in enumerate(panel.queries)
                ],
            })  # fmt: skip
        y += -(-len(members) // 3) * HEIGHT
    source = {
        "name": "datasource",
        "label": "datasource",
        "type": "datasource",
        "query": "prometheus",
    }
    return {
        "uid": "mexma", "title": "mexma", "tags": ["mexma"], "schemaVersion": 39, "version": 1,
        "editable": False, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source, variable("job", "job"), variable("instance", "instance")]},
        "annotations": {"list": []}, "panels": panels,
    }  # fmt: skip


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
