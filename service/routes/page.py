"""`GET /`: a page on which to try it. `GET /docs`: the API's documentation, with Swagger UI."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

# Swagger UI's files come from a package, not from a content network: /docs works offline.
MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


def router() -> APIRouter:
    """The pages' routes. Both pages name what they need by relative addresses, so they work behind any
    proxy, also one that ends TLS or serves them below a path of its own."""
    routes = APIRouter(include_in_schema=False)
    html, docs_html = (
        files("service.page").joinpath(name).read_text(encoding="utf-8")
        for name in ("index.html", "docs.html")
    )

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": CONTENT_SECURITY_POLICY})

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_html)

    for name, media_type in MEDIA_TYPES.items():
        routes.add_api_route(f"/swagger/{name}", _file(name, media_type))
    return routes


def _file(name: str, media_type: str) -> Callable[[], Response]:
    file = files("fastapi_swagger.resources").joinpath(name)

    def swagger_file() -> Response:
        return Response(file.read_bytes(), media_type=media_type)

    return swagger_file


# The page is one file that talks to its own server and nobody else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
