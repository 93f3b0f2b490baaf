"""The end of a server, in order: not ready, a while for load balancers to notice, then no more.

SIGTERM turns `/health/ready` off (`draining`) and everything else goes on for `delay_s`; then new
connections are refused, and what was accepted is finished. A second SIGTERM ends the while. The log
says when that begins and with how many requests under way, and how it ended.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
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
        config.app = self._watched(config.app)
        super().__init__(config)
        self._delay_s = delay_s
        self._asked: float | None = None
        self._began: float | None = None
        self._under_way = self._cut = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._delay_s and self._asked is None:
            self._captured_signals.append(sig)
            self._asked = time.monotonic()
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._asked is not None and time.monotonic() - self._asked >= self._delay_s:
            self.should_exit = True
        if self._asked is not None or self.should_exit:
            self._begin()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._begin()
        await super().shutdown(sockets)
        assert self._began is not None  # noqa: S101 - just now
        cut = self._cut + self._requests()
        log.log(
            logging.WARNING if cut else logging.INFO,
            "draining ended: %s",
            f"{cut} requests were cut" if cut else "all requests have finished",
            extra={"requests_cut": cut, "seconds": round(time.monotonic() - self._began, 3)},
        )

    def _begin(self) -> None:
        """Say that it begins, once; not from the signal's handler, which may interrupt a line half said."""
        if self._began is not None:
            return
        self._began = time.monotonic()
        log.info(
            "draining begins",
            extra={
                "signal": signal.Signals(self._captured_signals[-1]).name
                if self._captured_signals
                else None,
                "requests_under_way": self._requests(),
                "delay_s": self._delay_s,
            },
        )

    def _requests(self) -> int:
        """How many are under way, those included that wait for the rest of their body."""
        held = [bool(getattr(c, "holds", False)) for c in self.server_state.connections]
        return self._under_way + sum(held)

    def _watched(self, app: Any) -> ASGIApp:
        """`app`, whose requests are counted, and which is not ready while the server drains."""
        inner: ASGIApp = app

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            if self._asked is not None and scope["path"] in readiness.PATHS:
                detail = f"the service ends in {self._delay_s:g} s or less"
                response = readiness.not_ready(scope["path"], reason="draining", detail=detail)
                await response(scope, receive, send)
                return
            self._under_way += 1
            try:
                await inner(scope, receive, send)
            except asyncio.CancelledError:
                self._cut += self._began is not None
                raise
            finally:
                self._under_way -= 1

        return outer
