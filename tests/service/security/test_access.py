"""Roles and origins, attacked over HTTP."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from service.routes.names import FILLED, FIXED, UNMATCHED, methods_of, name_of
from service.security import access
from service.security.access import RULES, role_for
from service.security.keys import ROLES

# One request for each route of the OpenAPI document, with the role it needs.
ROUTES: dict[tuple[str, str], str | None] = {
    ("GET", "/health"): None,
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/metrics"): "metrics",
    ("GET", "/info"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/{model}"): "read",
    ("GET", "/v1/models/reload"): "admin",
    ("POST", "/v1/models/reload"): "admin",
    ("POST", "/v1/models/rollback"): "admin",
    ("POST", "/v1/embeddings"): "read",
    ("POST", "/embed"): "read",
    ("POST", "/v1/mine"): "read",
    ("POST", "/embed_all"): "read",
    ("POST", "/v1/align"): "read",
    ("GET", "/v1/collections"): "read",
    ("GET", "/v1/collections/{name}"): "read",
    ("PUT", "/v1/collections/{name}"): "write",
    ("DELETE", "/v1/collections/{name}"): "admin",
    ("POST", "/v1/collections/{name}/documents"): "write",
    ("DELETE", "/v1/collections/{name}/documents"): "write",
    ("POST", "/v1/collections/{name}/documents/count"): "read",
    ("POST", "/v1/collections/{name}/documents/scroll"): "read",
    ("GET", "/v1/collections/{name}/documents/{document_id}"): "read",
    ("DELETE", "/v1/collections/{name}/documents/{document_id}"): "write",
    ("POST", "/v1/collections/{name}/search"): "read",
    ("GET", "/v1/collections/{name}/migration"): "read",
    ("POST", "/v1/collections/{name}/migration"): "admin",
    ("DELETE", "/v1/collections/{name}/migration"): "admin",
    ("POST", "/v1/collections/{name}/migration/cut-over"): "admin",
    ("POST", "/v1/collections/{name}/migration/rollback"): "admin",
    ("POST", "/v1/collections/{name}/migration/retire"): "admin",
    ("GET", "/v1/collections/{name}/snapshots"): "read",
    ("POST", "/v1/collections/{name}/snapshots"): "admin",
    ("DELETE", "/v1/collections/{name}/snapshots/{snapshot_id}"): "admin",
    ("POST", "/v1/collections/{name}/snapshots/{snapshot_id}/restore"): "admin",
}


def filled(path: str) -> str:
    return path.format(name="c", document_id="a/b", snapshot_id="s", model="fake")


# Roles


def test_every_route_of_the_service_is_in_the_table_or_for_administrators(guarded):
    paths = guarded.client.get("/openapi.json").json()["paths"]
    found = {(m.upper(), p) for p, methods in paths.items() for m in methods}
    for method, path in found - set(ROUTES):
        assert role_for(method, filled(path)) is not None, f"{method} {path} is open to everybody"
    assert set(ROUTES) <= found
    for (method, path), role in ROUTES.items():
        assert role_for(method, filled(path)) == role, f"{method} {path}"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_answers_its_role_and_those_above_and_nobody_else(guarded, method, path):
    needed = ROUTES[method, path]
    answers = {role: guarded.ask(method, filled(path), role, json={}) for role in (None, *ROLES)}
    for role, answer in answers.items():
        if needed is None or (role is not None and ROLES.index(role) >= ROLES.index(needed)):
            assert answer.status_code not in (401, 403), (role, answer.text)
        else:
            assert answer.status_code == (401 if role is None else 403), (role, answer.text)
            assert "error" in answer.json()
    if needed is not None:
        assert answers[None].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("POST", "/v1/collections/c/documents/count/"),
        ("PATCH", "/v1/embeddings"),
        ("POST", "/metrics"),
        ("GET", "//metrics"),
        ("GET", "/health/"),
        ("GET", "/health/live/"),
        ("POST", "/health"),
        ("DELETE", "/v1/models/fake"),
        ("GET", "/health/../metrics"),
        ("GET", "/docs/../v1/collections"),
        ("GET", "/swagger/a/b"),
        ("DELETE", "/v1/collections"),
        ("OPTIONS", "/v1/embeddings"),
    ],
)
def test_what_is_not_in_the_table_is_for_administrators(method, path):
    assert role_for(method, path) == "admin"


def test_what_answers_at_the_address_itself_needs_a_readers_key(guarded):
    assert guarded.ask("POST", "/", json={"inputs": "x"}).status_code == 401
    assert guarded.ask("POST", "/", "metrics", json={"inputs": "x"}).status_code == 403
    assert guarded.ask("POST", "/", "read", json={"inputs": "x"}).status_code == 200
    assert guarded.ask("GET", "/").status_code == 200


def test_a_writers_key_deletes_a_document_whatever_its_id(guarded):
    path = "/v1/collections/c/documents/a%0Ab"
    assert guarded.ask("DELETE", path, "write").status_code == 404
    assert guarded.ask("DELETE", path, "read").status_code == 403


def test_rules_name_roles_that_there_are():
    assert {role for _, _, role in RULES} <= {None, *ROLES}


def test_the_api_s_own_documentation_asks_for_the_key(guarded):
    document = guarded.client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for (method, path), role in ROUTES.items():
        answers = document["paths"][path][method.lower()]["responses"]
        assert ({"401", "403"} <= set(answers)) == (role is not None), path


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/embeddings", 405, "POST"),
        ("HEAD", "/v1/embeddings", 405, "POST"),
        ("PATCH", "/v1/collections/c", 405, "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/v1/models/reload", 405, "GET, HEAD, POST"),
        ("POST", "/v1/nope", 404, None),
        ("DELETE", "/embeddings", 404, None),
    ],
)
def test_a_mistaken_request_is_told_so_and_not_to_be_an_administrator(
    guarded, method, path, status, allow
):
    """The same whatever the key is, and on record as nobody's act."""
    answers = [guarded.ask(method, path, role) for role in ("read", "write", "admin")]
    assert {a.status_code for a in answers} == {status}
    assert {a.headers.get("allow") for a in answers} == {allow}
    if method != "HEAD":
        assert len({a.json()["error"]["message"] for a in answers}) == 1
    assert guarded.ask(method, path).status_code == 401
    assert guarded.acts() == []


def test_a_long_path_is_not_repeated_whole(guarded):
    answer = guarded.ask("GET", "/" + "x" * 20_000, "read")
    assert answer.status_code == 404 and len(answer.content) < 500


# Names in metrics and logs


def test_every_route_has_its_name_also_for_who_is_refused(guarded):
    paths = guarded.client.get("/openapi.json").json()["paths"]
    counted = set()
    for path, methods in paths.items():
        name = name_of(filled(path))
        assert bare(name) == path
        if name in ("/health", "/health/live", "/health/ready"):
            continue
        for method in methods:
            assert guarded.ask(method.upper(), filled(path)).status_code == 401
            counted.add(f'{{route="{name}",status="401"}}')
    shown = guarded.ask("GET", "/metrics", "metrics").text
    assert [c for c in counted if f"mexma_http_requests_total{c}" not in shown] == []
    assert 'route="unmatched"' not in shown
    declared = {bare(name) for name in (*FIXED, *FILLED)}
    assert declared - set(paths) == {"/", "/docs", "/openapi.json"}
    for path, methods in paths.items():
        assert methods_of(filled(path)) == {method.upper() for method in methods}, path


def bare(name: str) -> str:
    """A route without the kinds of its parameters."""
    return re.sub(r":\w+}", "}", name)


@pytest.mark.parametrize("path", ["/nothing", "/v1/collections/c/x", "/embeds"])
def test_what_a_caller_made_up_is_no_name(guarded, path):
    assert name_of(path) == UNMATCHED
    assert guarded.ask("GET", path, "admin", follow_redirects=False).status_code in (404, 405, 307)
    assert guarded.ask("GET", path).status_code == 401
    shown = guarded.ask("GET", "/metrics", "metrics").text
    assert 'mexma_http_requests_total{route="unmatched",status="401"} 1.0' in shown


# Browsers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://testserver.evil.example"]
)
def test_pages_of_other_origins_can_neither_change_nor_read(make_client, origin):
    client = make_client()
    client.put("/v1/collections/c")
    headers = {"origin": origin}
    for method, path in (
        ("POST", "/v1/collections/c/snapshots"),
        ("DELETE", "/v1/collections/c"),
        ("POST", "/v1/embeddings"),
    ):
        answer = client.request(method, path, headers=headers, json={"input": "x"})
        assert answer.status_code == 403
        assert "MEXMA_CORS_ORIGINS" in answer.json()["error"]["message"]
    read = client.get("/v1/collections/c", headers=headers)
    preflight = client.options(
        "/v1/embeddings", headers=headers | {"access-control-request-method": "POST"}
    )
    assert preflight.status_code == 403
    assert "MEXMA_CORS_ORIGINS" in preflight.json()["error"]["message"]
    for answer in (read, preflight):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.get("/v1/collections/c").status_code == 200


def test_our_own_page_may_call_and_so_may_origins_that_are_listed(make_client):
    client = make_client(cors_origins=("https://app.example",))
    own = {"origin": "http://testserver"}
    assert client.post("/v1/embeddings", headers=own, json={"input": "x"}).status_code == 200
    listed = {"origin": "https://app.example"}
    answer = client.post("/v1/embeddings", headers=listed, json={"input": "x"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    preflight = client.options(
        "/v1/embeddings",
        headers=listed
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    other = {"origin": "https://evil.example"}
    assert client.post("/v1/embeddings", headers=other, json={"input": "x"}).status_code == 403


# Requests', and those that a proxy and its service say to each other.
NOT_ANSWERED = {"x-lane", "x-timeout-ms", "x-forwarded-for", "x-forwarded-proto"}


def test_listed_origins_may_read_every_header_that_answers_have(make_client):
    """Headers of ours are found in the source, so that the next one is not forgotten."""
    found = set()
    for file in Path(access.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if isinstance(text, str) and re.fullmatch("(x|retry|server|www)-[a-z-]+", text):
                found.add(text)
    assert {"retry-after-ms", "server-timing", "x-truncated-items"} < found >= NOT_ANSWERED
    client = make_client(cors_origins=("https://app.example",))
    answer = client.get("/v1/models", headers={"origin": "https://app.example"})
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert found - NOT_ANSWERED <= set(exposed), found - NOT_ANSWERED - set(exposed)
    assert not NOT_ANSWERED & set(exposed)
