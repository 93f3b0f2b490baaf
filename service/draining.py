"""The end of a server, in order: not ready, a while for load balancers to notice, then no more.

SIGTERM turns `/health/ready` off (`draining`) and everything else goes on for `delay_s`; then new
connections are refused, and what was accepted is finished. A second SIGTERM ends the while.
"""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service import readiness

log = logging.getLogger("mexma")


class DrainingServer(uvicorn.Server):
    """delay_s: between SIGTERM and the refusal of new connections; 0 refuses them at once."""

    def __init__(self, config: uvicorn.Config, *, delay_s: float):
        config.app = self._not_ready_while_draining(config.app)
        super().__init__(config)
        self._delay_s = delay_s
        self._asked: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._delay_s and self._asked is None:
            self._captured_signals.append(sig)
            self._asked = time.monotonic()
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._asked is not None and time.monotonic() - self._asked >= self._delay_s:
            self.should_exit = True
        return await super().on_tick(counter)

    def _not_ready_while_draining(self, app: Any) -> ASGIApp:
        inner: ASGIApp = app

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            draining = self._asked is not None and scope["type"] == "http"
            if draining and scope["path"] in readiness.PATHS:
                detail = f"the service ends in {self._delay_s:g} s or less"
                response = readiness.not_ready(scope["path"], reason="draining", detail=detail)
                await response(scope, receive, send)
                return
            await inner(scope, receive, send)

        return outer
