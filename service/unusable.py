"""Collections that answer no search as things are, said once at the start.

They make the service no less ready: the others work, and what is amiss with these a restart does not
mend. Whoever starts it should read of it before a caller does.
"""

from __future__ import annotations

import asyncio
import logging

from mexma.errors import StoreError
from service.state import State

log = logging.getLogger(__name__)


async def warn_of_unusable(state: State) -> None:
    """One line for each that is damaged, or belongs to an encoder that is not served."""
    try:
        infos = await asyncio.to_thread(state.store.list)
    except StoreError:
        return  # its server is away, which is said already
    for info in infos:
        if info.index_state == "corrupt":
            log.warning(
                "collection %s is damaged and answers 500; restore a snapshot of it (POST "
                "/v1/collections/%s/snapshots/ID/restore); mexma-index verify says what is damaged",
                info.name,
                info.name,
            )
        elif state.encoders.get(info.fingerprint) is None:
            move = f"POST /v1/collections/{info.name}/migration"
            log.warning(
                "collection %s belongs to encoder %s, which is not served, and answers 409; list its "
                "model in MEXMA_FURTHER_MODELS, or move it (%s)",
                info.name,
                info.fingerprint,
                move if state.migrator else "mexma-index migrate",
            )
