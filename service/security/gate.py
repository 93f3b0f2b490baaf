"""The way in: is this request's sender allowed, and is what an administrator does on record?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from fastapi.responses import Response
from starlette.types import Scope

from mexma.errors import AuditError
from service.http_errors import error_response, for_exception, no_route
from service.metrics import Metrics
from service.routes.names import methods_of
from service.security.access import Admitted, Guard, Refusal
from service.security.audit import Act, Audit
from service.security.audit import current as current_act
from service.security.quotas import current as current_quota

log = logging.getLogger(__name__)


class Gate:
    """guard: who may call. audit: where administrators' acts are recorded."""

    def __init__(self, guard: Guard, audit: Audit, metrics: Metrics):
        self._guard = guard
        self._audit = audit
        self._metrics = metrics
        metrics.keys_valid.set_function(lambda: float(guard.valid))

    async def enter(
        self, scope: Scope, headers: Mapping[bytes, bytes], request_id: str
    ) -> Response | Act | None:
        """The answer to who is not let in; else what to record in the end, None for nothing.

        The quota of who is let in is `service.security.quotas.current` from here on.
        """
        found = self._guard.check(scope, headers)
        if isinstance(found, Refusal):
            return self._refuse(scope, found)
        current_quota.set(found.quota)
        # Where there is no route nothing is done, whatever it would need.
        if found.role != "admin" or scope["method"] not in methods_of(scope["path"]):
            return None
        act: Act = {
            "request_id": request_id,
            "client": found.key.name if found.key else None,
            "key": found.key.id if found.key else None,
            # Of the client, where a proxy that is trusted names it; else of who is connected.
            "address": scope["client"][0] if scope.get("client") else None,
            "method": scope["method"],
            "path": scope["path"],
        }
        try:
            await asyncio.to_thread(self._audit.write, "asked", **act)
        except AuditError as error:
            self._metrics.refused.labels("audit").inc()
            log.error("refused, because it cannot be recorded: %s", error)
            return for_exception(scope["path"], AuditError("the act cannot be recorded"))
        current_act.set(act)
        return act

    def knows(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Admitted | None:
        """Who sends a request that leaves nothing on record; None for one who is not let in."""
        found = self._guard.check(scope, headers)
        return None if isinstance(found, Refusal) or found.role == "admin" else found

    def _refuse(self, scope: Scope, found: Refusal) -> Response:
        if found.reason == "no_route":  # which is no refusal: no key would change it
            return no_route(scope["method"], scope["path"])
        self._metrics.refusal(reason=found.reason)
        return error_response(
            scope["path"],
            found.status,
            found.message,
            kind="authentication_error" if found.status == 401 else "permission_error",
            code=found.reason,
            headers=found.headers,
        )

    async def leave(self, act: Act, status: int) -> None:
        """What came of it."""
        with suppress(AuditError):  # that it was asked for is on record
            await asyncio.to_thread(self._audit.write, "done", status=status, **act)


class FirstGate(Gate):
    """An HTTP worker's, before that of the engine's process: it refuses who may not call at all.
    Quotas and the record are kept in one place, so what they concern takes the long way there."""

    async def enter(
        self, scope: Scope, headers: Mapping[bytes, bytes], request_id: str
    ) -> Response | Act | None:
        found = self._guard.check(scope, headers)
        if isinstance(found, Refusal):
            return self._refuse(scope, found)
        scope["long_way"] = found.quota is not None
        return None
