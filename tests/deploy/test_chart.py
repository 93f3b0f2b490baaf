"""The Helm chart: rendered by helm, checked against Kubernetes' own schemas, and for what it promises."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.__main__ import GRACE_S
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import ROOT
from tests.deploy.tools import tool

CHART = ROOT / "deploy" / "chart"
KUBERNETES = ("1.27.0", "1.37.0")  # the oldest that Chart.yaml admits, the newest with schemas here
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}  # not Kubernetes' own: checked below

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "replicas": {"mode": "replicas", "replicas": 3},
    "autoscaled": {"mode": "replicas", "autoscaling": {"enabled": True}},
    "milvus": {
        "mode": "replicas",
        "milvus": {"uri": "http://milvus:19530", "tokenSecret": "milvus"},
        "autoscaling": {"enabled": True},
        "networkPolicy": {
            "egress": [{"ports": [{"port": 19530}, {"port": 53, "protocol": "UDP"}]}]
        },
    },
    "gpu": {"gpu": {"enabled": True}, "nodeSelector": {"zone": "a"}},
    "bare": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "persistence": {"existingClaim": "mine"},
    },
    "everything": {
        "imagePullSecrets": [{"name": "registry"}],
        "settings": {"MEXMA_MAX_QUEUE_TOKENS": 131072, "MEXMA_DEMO": False},
        "tlsSecret": "certificate",
        "apiKeysSecret": "keys",
        "tracing": {"endpoint": "http://collector:4318"},
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "apiKeySecret": "scraping",
        },
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
        "networkPolicy": {
            "from": [{"podSelector": {"matchLabels": {"app": "caller"}}}],
            "egress": [{"to": [{"namespaceSelector": {}}]}],
        },
        "persistence": {"storageClassName": "fast", "size": "100Gi"},
        "models": {"existingClaim": "artifacts"},
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "podAnnotations": {"a": "b"},
        "priorityClassName": "high",
    },
}


def helm(*arguments: str, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return subprocess.run(
        [tool("helm"), *arguments, "--values", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )


def render(values: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The chart's resources by kind; each kind comes at most once."""
    done = helm("template", "try", str(CHART), "--namespace", "here", values=values, folder=folder)
    assert done.returncode == 0, done.stderr
    resources = [r for r in yaml.safe_load_all(done.stdout) if r]
    by_kind = {r["kind"]: r for r in resources}
    assert len(by_kind) == len(resources)
    return by_kind


def pod_of(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    workload = resources.get("StatefulSet") or resources["Deployment"]
    return workload["spec"]["template"]


def environment(resources: dict[str, dict[str, Any]]) -> dict[str, str]:
    (container,) = pod_of(resources)["spec"]["containers"]
    names = [e["name"] for e in container["env"]]
    assert len(set(names)) == len(names)
    return {e["name"]: e.get("value", "from-a-secret") for e in container["env"]}


@pytest.fixture(params=VARIANTS)
def resources(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, dict[str, Any]]:
    return render(VARIANTS[request.param], tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_finds_nothing_to_complain_of(variant, tmp_path):
    done = helm("lint", str(CHART), "--strict", values=VARIANTS[variant], folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_resource_is_what_kubernetes_takes(resources, version):
    """Strict: a field that the schema does not know is an error."""
    for kind, resource in resources.items():
        if kind not in OPERATOR_KINDS:
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_would_notice(tmp_path):
    pod = render({}, tmp_path)["StatefulSet"]
    pod["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)


def test_every_setting_of_a_pod_is_one_of_the_service_and_is_taken(resources, monkeypatch):
    found = environment(resources)
    assert set(found) <= {f"MEXMA_{name.upper()}" for name in Settings.model_fields}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    Settings()


def test_models_of_a_claim_are_where_a_reload_looks(tmp_path):
    resources = render({"models": {"existingClaim": "artifacts"}}, tmp_path)
    spec = pod_of(resources)["spec"]
    (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "models")
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert environment(resources)["MEXMA_MODELS_DIR"] == mount["mountPath"]
    (volume,) = (v for v in spec["volumes"] if v["name"] == "models")
    assert volume["persistentVolumeClaim"] == {"claimName": "artifacts", "readOnly": True}
    assert "MEXMA_MODELS_DIR" not in environment(render({}, tmp_path))


def test_a_pod_is_confined_and_probed_and_has_time_to_end(resources):
    spec = pod_of(resources)["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for probe, path in {"readiness": "ready", "liveness": "live", "startup": "live"}.items():
        assert container[f"{probe}Probe"]["httpGet"]["path"] == f"/health/{path}"
        scheme = container[f"{probe}Probe"]["httpGet"]["scheme"]
        assert (scheme == "HTTPS") == ("MEXMA_TLS_CERT" in environment(resources))
    delay = int(environment(resources)["MEXMA_DRAIN_DELAY_S"])
    assert delay > 0
    assert spec["terminationGracePeriodSeconds"] > GRACE_S + delay
    mounted = {m["name"] for m in container["volumeMounts"]}
    claims = resources.get("StatefulSet", {"spec": {}})["spec"].get("volumeClaimTemplates", [])
    offered = {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert mounted == offered


def test_what_selects_pods_selects_these(resources):
    labels = pod_of(resources)["metadata"]["labels"]
    for kind, resource in resources.items():
        spec = resource.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is not None and kind != "ServiceMonitor":
            wanted = selector.get("matchLabels", selector)
            assert wanted, kind
            assert wanted.items() <= labels.items(), kind
    if "ServiceMonitor" in resources:
        wanted = resources["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= resources["Service"]["metadata"]["labels"].items()
    ports = {p["name"] for p in pod_of(resources)["spec"]["containers"][0]["ports"]}
    assert {p["targetPort"] for p in resources["Service"]["spec"]["ports"]} <= ports


def test_the_user_of_the_pod_is_the_image_s(tmp_path):
    user = pod_of(render({}, tmp_path))["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in (ROOT / "Dockerfile").read_text().splitlines()


def test_the_autoscaler_looks_at_the_queue_and_owns_the_number_of_replicas(tmp_path):
    resources = render(VARIANTS["autoscaled"], tmp_path)
    scaler = resources["HorizontalPodAutoscaler"]["spec"]
    target = scaler["scaleTargetRef"]
    assert resources[target["kind"]]["metadata"]["name"] == target["name"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == Metrics().queue_tokens._name
    assert "replicas" not in resources["Deployment"]["spec"]


def test_collections_have_a_volume_and_replicas_have_no_collections(tmp_path):
    alone = render({}, tmp_path)
    (claim,) = alone["StatefulSet"]["spec"]["volumeClaimTemplates"]
    mounts = pod_of(alone)["spec"]["containers"][0]["volumeMounts"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in mounts
    assert environment(alone).get("MEXMA_COLLECTIONS", "true") == "true"
    many = render(VARIANTS["replicas"], tmp_path)
    assert many["Deployment"]["spec"]["replicas"] == 3
    assert environment(many)["MEXMA_COLLECTIONS"] == "false"
    shared = environment(render(VARIANTS["milvus"], tmp_path))
    assert shared["MEXMA_MILVUS_URI"] == "http://milvus:19530"
    assert shared["MEXMA_MILVUS_TOKEN"] == "from-a-secret"
    assert "MEXMA_COLLECTIONS" not in shared


def test_a_gpu_is_asked_for_where_there_is_one(tmp_path):
    spec = pod_of(render(VARIANTS["gpu"], tmp_path))["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"]
    assert container["image"].endswith("-gpu")
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true", "zone": "a"}
    assert spec["tolerations"]
    without = pod_of(render({}, tmp_path))["spec"]
    assert "nodeSelector" not in without
    assert "nvidia.com/gpu" not in without["containers"][0]["resources"]["limits"]


def test_by_default_the_network_lets_in_neighbours_and_nothing_out(tmp_path):
    policy = render({}, tmp_path)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert [p["port"] for p in rule["ports"]] == ["http"]
    assert rule["from"][0] == {"podSelector": {}}
    narrowed = render(VARIANTS["everything"], tmp_path)["NetworkPolicy"]["spec"]
    assert {"podSelector": {}} not in narrowed["ingress"][0]["from"]


def test_alerts_and_dashboard_are_those_of_the_repository(tmp_path):
    resources = render(VARIANTS["everything"], tmp_path)
    monitoring = CHART / "monitoring"
    rules = yaml.safe_load((monitoring / "alerts.yaml").read_text())
    assert resources["PrometheusRule"]["spec"] == rules
    shown = json.loads(resources["ConfigMap"]["data"]["mexma.json"])
    assert shown == json.loads((monitoring / "dashboard.json").read_text())
    (endpoint,) = resources["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] in {p["name"] for p in resources["Service"]["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {"name": "scraping", "key": "key"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"autoscaling": {"enabled": True}}, "autoscaling needs mode: replicas"),
        ({"replicas": 2}, "replicas above 1 need mode: replicas"),
        ({"mode": "both"}, "mode"),
        ({"milvus": {"uri": "http://milvus:19530"}}, "milvus.uri needs mode: replicas"),
        ({"replica": 2}, "replica"),
        ({"settings": {"MAX_QUEUE_TOKENS": 1}}, "MAX_QUEUE_TOKENS"),
        ({"persistence": {"size": "much"}}, "size"),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_word(values, says, tmp_path):
    done = helm("template", "try", str(CHART), values=values, folder=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr
