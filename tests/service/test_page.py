"""The page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, Route, expect, sync_playwright

from mexma.sample import tatoeba_sample
from service.security.keys import new_key, write_keys
from tests.browser import ARGUMENTS, find_browser
from tests.conftest import Server, start_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, loaded; the test fails if it logs an error or asks any other host."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.url, "data:"))
            else problems.append(f"asked {request.url}")
        ),
    )
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    page.close()
    assert problems == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Sentence to search for").fill(text)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_contain_text("neighbours in")


def test_a_sentence_finds_neighbours_grouped_by_language(page: Page, tmp_path: Path) -> None:
    query = next(s for s in tatoeba_sample() if s.lang == "ja")
    english = next(s for s in tatoeba_sample() if s.lang == "en" and s.group == query.group)
    ask(page, query.text)
    expect(page.get_by_role("status")).to_contain_text("Read as Japanese")
    assert page.locator("section").count() == 42
    group = page.locator("section", has=page.get_by_role("heading", name="English"))
    expect(group.locator("li").first.locator(".text")).to_have_text(english.text)
    scores = [float(s) for s in group.locator(".score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_options_change_the_answer(page: Page) -> None:
    query = next(s for s in tatoeba_sample() if s.lang == "fi")
    ask(page, query.text)
    finnish = page.locator("section", has=page.get_by_role("heading", name="Finnish"))
    expect(finnish).to_have_count(1)
    page.get_by_label("leave out the language I type in").check()
    expect(finnish).to_have_count(0)
    page.get_by_label("Neighbours per language").select_option("1")
    expect(page.locator("li")).to_have_count(41)
    page.get_by_label("Score").select_option("margin")
    expect(page.get_by_role("status")).to_contain_text("41 neighbours")


def test_an_example_can_be_tried(page: Page) -> None:
    page.locator("#examples button").first.click()
    expect(page.get_by_role("status")).to_contain_text("neighbours in")


def test_nothing_typed_is_said(page: Page) -> None:
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_have_text("Type a sentence first.")


def test_a_server_that_is_gone_is_said(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]")
    page.route("**/search", lambda route: route.abort())
    page.get_by_label("Sentence to search for").fill("x")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_have_text(
        "The server does not answer. Is it still running?"
    )
    expect(page.get_by_role("button", name="Search")).to_be_enabled()
    page.close()


def test_a_search_can_be_linked_to(page: Page, server: Server) -> None:
    ask(page, "Kissa & koira?")
    assert page.url == f"{server.url}/?q=Kissa%20%26%20koira%3F"
    page.reload()
    expect(page.get_by_label("Sentence to search for")).to_have_value("Kissa & koira?")
    expect(page.get_by_role("status")).to_contain_text("neighbours in")


def test_a_search_before_ready_waits_and_a_cut_text_is_said(
    browser: Browser, server: Server
) -> None:
    page = browser.new_page()
    answers = iter([{"status": "not_ready", "reason": "filling_demo", "detail": None}])

    def ready(route) -> None:
        answer = next(answers, None)
        if answer is None:
            route.continue_()
        else:
            route.fulfill(status=503, json=answer)

    page.route("**/health/ready", ready)
    page.goto(server.url)
    expect(page.get_by_role("status")).to_contain_text("First start")
    page.get_by_label("Sentence to search for").fill("kissa " * 2000)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_contain_text("characters were read")
    page.close()


def test_texts_are_shown_as_text(page: Page, server: Server) -> None:
    """A stored document that holds markup must not become markup."""
    import httpx

    documents = [{"id": "x", "text": "<img src=x onerror=document.title='owned'>", "lang": "en"}]
    httpx.put(f"{server.url}/v1/collections/hostile").raise_for_status()
    httpx.post(f"{server.url}/v1/collections/hostile/documents", json={"documents": documents})
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    page.get_by_label("Collection").select_option("hostile")
    ask(page, "anything")
    expect(page.locator("li .text")).to_have_text(documents[0]["text"])
    assert page.title() != "owned"
    httpx.delete(f"{server.url}/v1/collections/hostile").raise_for_status()


def test_a_narrow_screen_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    ask(page, "Hello")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360


def test_docs_work_without_a_content_network(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.get_by_text("/v1/embeddings").first).to_be_visible()
    assert all(url.startswith((server.url, "data:")) for url in asked), asked
    page.close()


def test_docs_work_behind_a_proxy_that_ends_tls_and_has_a_path_of_its_own(
    browser: Browser, server: Server
) -> None:
    """The server knows neither the scheme, nor the host's name, nor the path."""
    page = browser.new_page()
    outside, asked = "https://embed.example.org/tools/mexma", []

    def forward(route: Route) -> None:
        asked.append(route.request.url)
        if not route.request.url.startswith(f"{outside}/"):
            route.abort()
            return
        answer = httpx.request(
            route.request.method,
            server.url + route.request.url.removeprefix(outside),
            headers={"host": "embed.example.org"},
        )
        route.fulfill(
            status=answer.status_code,
            body=answer.content,
            content_type=answer.headers["content-type"],
        )

    page.route("**/*", forward)
    page.goto(f"{outside}/docs")
    page.get_by_text("/v1/models", exact=True).click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text("mexma-small")
    assert all(url.startswith((f"{outside}/", "data:")) for url in asked), asked
    assert f"{outside}/v1/models" in asked
    page.close()


def test_where_there_are_keys_the_page_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    given, key = new_key("somebody", "read")
    write_keys(tmp_path / "keys.json", [key])
    server = start_server(tmp_path, demo="false", api_keys_file=tmp_path / "keys.json")
    while not is_port_open(server):
        assert server.process.poll() is None, server.log.read_text()
    page = browser.new_page()
    asked: list[str] = []
    answers = iter(["wrong", given])

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept(next(answers))

    page.on("dialog", answer)
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]")
    expect(page.locator("#model")).to_contain_text("mexma-small")
    assert len(asked) == 2, "once for nothing, once more for the wrong one"
    assert "does not take this key" not in asked[0]
    assert "does not take this key" in asked[1]
    page.get_by_role("link", name="Metrics").click()
    expect(page.get_by_text("mexma_ready 1.0")).to_be_visible()
    page.close()
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_where_collections_are_off_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    server = start_server(tmp_path, collections="false")
    while not is_port_open(server):
        assert server.process.poll() is None, server.log.read_text()
    page = browser.new_page()
    page.goto(server.url)
    expect(page.get_by_role("status")).to_contain_text("collections are turned off here")
    expect(page.locator("#model")).to_contain_text("mexma-small")
    page.close()
    server.process.terminate()
    assert server.process.wait(60) == 0


def is_port_open(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health/live").status_code == 200
    except httpx.TransportError:
        return False
