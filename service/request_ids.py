"""What a request is called in its answer (`x-request-id`), in logs and in traces."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Mapping

NUMBER = itertools.count(1)
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class _Process:
    """An id of our own is this process's random half and a running number."""

    half = secrets.token_hex(8).encode()

    @classmethod
    def renew(cls) -> None:
        """HTTP workers are forked from one process, and count on from the same number."""
        cls.half = secrets.token_hex(8).encode()


os.register_at_fork(after_in_child=_Process.renew)


def request_id_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's own where it may have it, else one of ours."""
    given = headers.get(b"x-request-id", b"")
    if given and REQUEST_ID.fullmatch(given):
        return given
    return b"%s%016x" % (_Process.half, next(NUMBER))
