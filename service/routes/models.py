"""Another model in the place of the one that serves, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from fastapi import APIRouter

from mexma.errors import ReloadConflict
from service.http_errors import BODY_ERRORS, documented
from service.json_body import JsonRoute
from service.reloader import Outcome
from service.schemas import ReloadOutcome, ReloadRequest, ReloadStatus
from service.security import audit
from service.state import State


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["models"])
    reloader = state.reloader

    @routes.post(
        "/v1/models/reload",
        response_model=ReloadOutcome,
        responses=documented(*BODY_ERRORS, 409, 500, 501, 503),
    )
    async def reload_model(body: ReloadRequest) -> ReloadOutcome:
        """Verify, load and prove another artifact beside the model that serves, and let it answer.

        The answer comes when it does. No request fails meanwhile, each is answered by one model and
        says by which; the model before is kept for a while, for a rollback and for collections.
        """
        if state.starting is not None:
            raise ReloadConflict("the service is starting; retry when it is ready")
        with _noted():
            audit.note(model=body.model or str(state.settings.model))
            return _outcome(await reloader.reload(body.model))

    @routes.get("/v1/models/reload", response_model=ReloadStatus)
    async def reload_status() -> ReloadStatus:
        """What became of the last reload, and whether one is on its way or on trial."""
        return ReloadStatus(
            state=reloader.state,
            fingerprint=reloader.serving,
            previous=reloader.previous,
            last=None if reloader.last is None else _outcome(reloader.last),
        )

    @routes.post(
        "/v1/models/rollback",
        response_model=ReloadOutcome,
        responses=documented(409, 500, 501),
    )
    async def roll_back_model() -> ReloadOutcome:
        """Let the model before the last reload answer again, at once: it is still loaded."""
        with _noted():
            return _outcome(await reloader.roll_back())

    @contextmanager
    def _noted() -> Iterator[None]:
        """On record is which model answered before and which one after, also where it was refused."""
        audit.note(fingerprint_before=reloader.serving)
        try:
            yield
        finally:
            audit.note(fingerprint_after=reloader.serving)

    return routes


def _outcome(outcome: Outcome) -> ReloadOutcome:
    return ReloadOutcome(**asdict(outcome))
