"""Where a scroll goes on: the last row that was seen, as text that means nothing to its holder.

A cursor belongs to one incarnation of a collection. Rows are numbered anew when a collection is
dropped and made again, so a cursor from before would skip documents without a word.
"""

from __future__ import annotations

import base64
import binascii
import zlib

from mexma.errors import InputError


class Cursors:
    """Writes and reads the cursors of one incarnation, named by `owner`."""

    def __init__(self, owner: str):
        self._owner = owner

    def write(self, rid: int) -> str:
        """The cursor to the rows after `rid`."""
        return base64.urlsafe_b64encode(self._bytes(rid)).decode()

    def read(self, cursor: str) -> int:
        """The rid that a cursor was written for. Raises InputError for any other text."""
        try:
            content = base64.b64decode(cursor, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        rid = int.from_bytes(content[:8], "big")
        if content != self._bytes(rid) or rid >= 2**63:
            raise InputError(
                f"cursor must come from an earlier page of this collection, got {cursor[:80]!r}"
            )
        return rid

    def _bytes(self, rid: int) -> bytes:
        number = rid.to_bytes(8, "big")
        return number + zlib.crc32(self._owner.encode() + number).to_bytes(4, "big")
