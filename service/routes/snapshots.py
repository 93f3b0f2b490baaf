"""Snapshots of a collection: make, list, restore, remove."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path

from service.collection_schemas import (
    CollectionDescription,
    SnapshotDescription,
    SnapshotList,
)
from service.http_errors import STORE_ERRORS, documented
from service.json_body import JsonRoute
from service.routes.collections import PREFIX, Name, described
from service.state import State

SnapshotId = Annotated[str, Path(description="As listed.", min_length=1, max_length=64)]


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["snapshots"], prefix=PREFIX)
    store = state.store

    @routes.post(
        "/{name}/snapshots",
        response_model=SnapshotDescription,
        responses=documented(404, 422, *STORE_ERRORS, 501),
    )
    async def create_snapshot(name: Name) -> SnapshotDescription:
        """Copy a collection as of one moment, while it is read and written; the answer comes when
        the copy is on disk."""
        return SnapshotDescription(**asdict(await asyncio.to_thread(store.back_up, name)))

    @routes.get(
        "/{name}/snapshots",
        response_model=SnapshotList,
        responses=documented(404, 422, *STORE_ERRORS, 501),
    )
    async def list_snapshots(name: Name) -> SnapshotList:
        """A collection's snapshots, oldest first; they outlive the collection."""
        found = await asyncio.to_thread(store.backups, name)
        return SnapshotList(snapshots=[SnapshotDescription(**asdict(backup)) for backup in found])

    @routes.post(
        "/{name}/snapshots/{snapshot_id}/restore",
        response_model=CollectionDescription,
        responses=documented(404, 422, *STORE_ERRORS, 501),
    )
    async def restore_snapshot(name: Name, snapshot_id: SnapshotId) -> CollectionDescription:
        """Put a snapshot in the place of the collection, which may be damaged or dropped.

        What was written since is gone. Every search is answered by the one or the other. A snapshot
        belongs to the encoder that made it: where that is not served (`served` is false), searches
        and writes answer 409 from now on.
        """
        restored = described(state, await asyncio.to_thread(store.restore, name, snapshot_id))
        await state.canaries.check(name)
        return restored

    @routes.delete(
        "/{name}/snapshots/{snapshot_id}",
        status_code=204,
        responses=documented(404, 422, *STORE_ERRORS, 501),
    )
    async def delete_snapshot(name: Name, snapshot_id: SnapshotId) -> None:
        """Delete a snapshot."""
        await asyncio.to_thread(store.remove_backup, name, snapshot_id)

    return routes
