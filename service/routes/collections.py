"""Collections: create, list, describe, drop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Request

from mexma.errors import CollectionNotFound, FingerprintMismatch, InputError
from service.collection_schemas import CollectionDescription, CollectionList, CollectionName
from service.engine.embedder import Embedder
from service.http_errors import STORE_ERRORS, documented
from service.json_body import JsonRoute
from service.state import State
from service.store.protocol import CollectionInfo

PREFIX = "/v1/collections"
Name = Annotated[CollectionName, Path(description="1 to 64 letters, digits, `_` or `-`.")]
Model = Annotated[
    str | None,
    Query(description="Name or fingerprint of a served model; the default one.", max_length=256),
]
T = TypeVar("T")
# What clients send that have to send something.
NOTHING = (b"", b"{}", b"null")


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["collections"], prefix=PREFIX)
    store = state.store

    @routes.get("", response_model=CollectionList, responses=documented(*STORE_ERRORS))
    async def list_collections() -> CollectionList:
        """All collections."""
        infos = await asyncio.to_thread(store.list)
        return CollectionList(collections=[described(state, info) for info in infos])

    @routes.put(
        "/{name}",
        response_model=CollectionDescription,
        responses=documented(404, 409, 422, 504, *STORE_ERRORS),
    )
    async def create_collection(
        name: Name, request: Request, model: Model = None
    ) -> CollectionDescription:
        """Create a collection, or find that it exists already.

        It is stamped with the encoder that makes it, the default one or `model`, and takes no
        other's vectors. Without `model` one that exists is found whichever is its encoder, as long
        as that is served.
        """
        if (await request.body()).strip() not in NOTHING:
            raise InputError(
                "expected no body: a collection has the dimensions of its encoder's vectors and the "
                "cosine as distance; ?model= names another encoder that is served"
            )
        embedder = state.encoders.default if model is None else state.encoders.known(model)
        if model is None:
            with suppress(CollectionNotFound):
                info = await asyncio.to_thread(store.describe, name)
                if state.encoders.get(info.fingerprint):
                    return described(state, info)
        return described(state, await state.canaries.create(name, embedder))

    @routes.get(
        "/{name}",
        response_model=CollectionDescription,
        responses=documented(404, 422, *STORE_ERRORS),
    )
    async def describe_collection(name: Name) -> CollectionDescription:
        """One collection: how many documents, in which languages, by which encoder."""
        return described(state, await asyncio.to_thread(store.describe, name))

    @routes.delete("/{name}", status_code=204, responses=documented(404, 422, *STORE_ERRORS))
    async def drop_collection(name: Name) -> None:
        """Delete a collection with all its documents."""
        await asyncio.to_thread(store.drop, name)
        state.canaries.forget(name)

    return routes


async def with_encoder(
    state: State,
    name: str,
    use: Callable[[CollectionInfo, Embedder], Awaitable[T]],
    *,
    again: bool = True,
) -> T:
    """Use a collection with the encoder it belongs to.

    Begun again where the collection was cut over to another encoder in that moment; not `again`
    raises FingerprintMismatch then, as it is raised where its encoder is not served. Raises
    CanaryMismatch where that encoder is not what it was.
    """
    info = await asyncio.to_thread(state.store.describe, name)  # 404 before any work
    how = f"POST {PREFIX}/{name}/migration" if state.migrator else "mexma-index migrate"
    otherwise = f"move it to one that is ({how}), "
    while True:
        await state.canaries.see_to_on(name)
        try:
            embedder = state.encoders.of(info, otherwise=otherwise)
            with embedder.holders:
                return await use(info, embedder)
        except FingerprintMismatch:
            before, info = info, await asyncio.to_thread(state.store.describe, name)
            if not again or info.fingerprint == before.fingerprint:
                raise


def described(state: State, info: CollectionInfo) -> CollectionDescription:
    return CollectionDescription(
        name=info.name,
        dimensions=info.dim,
        fingerprint=info.fingerprint,
        served=state.encoders.get(info.fingerprint) is not None,
        count=info.count,
        languages=info.languages,
        index_state=info.index_state,
        created_at=info.created_at,
        recall=info.recall,
        hubness=info.hubness,
    )
