"""Collections: create, list, describe, drop."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from service.collection_schemas import CollectionDescription, CollectionList, CollectionName
from service.http_errors import STORE_ERRORS, documented
from service.json_body import JsonRoute
from service.state import State
from service.store.protocol import CollectionInfo

PREFIX = "/v1/collections"
Name = Annotated[CollectionName, Path(description="1 to 64 letters, digits, `_` or `-`.")]


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["collections"], prefix=PREFIX)
    store = state.store
    dim, fingerprint = state.encoder.manifest.dim, state.encoder.fingerprint

    @routes.get("", response_model=CollectionList, responses=documented(*STORE_ERRORS))
    async def list_collections() -> CollectionList:
        """All collections."""
        infos = await asyncio.to_thread(store.list)
        return CollectionList(collections=[described(info) for info in infos])

    @routes.put(
        "/{name}",
        response_model=CollectionDescription,
        responses=documented(409, 422, *STORE_ERRORS),
    )
    async def create_collection(name: Name) -> CollectionDescription:
        """Create a collection, or find that it exists already.

        It is stamped with the encoder that is served now, and takes no other's vectors.
        """
        return described(await asyncio.to_thread(store.create, name, dim, fingerprint))

    @routes.get(
        "/{name}",
        response_model=CollectionDescription,
        responses=documented(404, 422, *STORE_ERRORS),
    )
    async def describe_collection(name: Name) -> CollectionDescription:
        """One collection: how many documents, in which languages, by which encoder."""
        return described(await asyncio.to_thread(store.describe, name))

    @routes.delete("/{name}", status_code=204, responses=documented(404, 422, *STORE_ERRORS))
    async def drop_collection(name: Name) -> None:
        """Delete a collection with all its documents."""
        await asyncio.to_thread(store.drop, name)

    return routes


def described(info: CollectionInfo) -> CollectionDescription:
    return CollectionDescription(
        name=info.name,
        dimensions=info.dim,
        fingerprint=info.fingerprint,
        count=info.count,
        languages=info.languages,
        index_state=info.index_state,
        created_at=info.created_at,
        recall=info.recall,
        hubness=info.hubness,
    )
