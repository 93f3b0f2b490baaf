"""`GET /`: a page on which to try it."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def router() -> APIRouter:
    """The page's route."""
    routes = APIRouter(include_in_schema=False)
    html = files("service.page").joinpath("index.html").read_text(encoding="utf-8")

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": CONTENT_SECURITY_POLICY})

    return routes


# The page is one file that talks to its own server and nobody else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
