"""What a connection knows of a request when its turn has come: whether its body is all here, and later
that its client has left.

A server that is not ours tells neither; then the body is received as ASGI has it, and who left is asked for
(middleware.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Scope

KEY = "mexma.received"
Refuse = Callable[[Scope], Response | None]
"""What a request is told that is refused as soon as it is here; None for all others."""


@dataclass(slots=True)
class Received:
    """body: all of it, None where more is to come. left: whether its client has closed the connection;
    on_left is called then. let_in: whether it was asked already if there is room for it, and there was."""

    body: bytes | None
    left: bool = False
    on_left: Callable[[], object] | None = None
    let_in: bool = False

    def leave(self) -> None:
        """The client has closed the connection."""
        self.left = True
        if self.on_left is not None:
            self.on_left()


def received_of(scope: Scope) -> Received | None:
    """What is known of the request of `scope`; None where its server tells nothing."""
    found: Received | None = scope.get(KEY)
    return found
