"""Moving a collection to another encoder: start, look, cut over, roll back, give up or finish."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from mexma.errors import CanaryMismatch, MigrationConflict, StoreUnsupported
from service.canaries import BOUND, lowest_cosine
from service.collection_schemas import (
    CollectionDescription,
    MigrationDescription,
    MigrationReport,
    MigrationRequest,
)
from service.http_errors import BODY_ERRORS, documented
from service.json_body import JsonRoute
from service.migrator import Migrator
from service.routes.collections import PREFIX, Name, described
from service.security import audit
from service.state import State
from service.store.migrations import Migrations
from service.store.moving import MigrationInfo

K = Annotated[int, Query(ge=1, le=1000, description="Neighbours that the report compares.")]
Sample = Annotated[
    int, Query(ge=0, le=10_000, description="Documents that the report asks for; 0 makes none.")
]


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["migration"], prefix=PREFIX)

    @routes.post(
        "/{name}/migration",
        response_model=MigrationDescription,
        responses=documented(*BODY_ERRORS, 404, 409, 500, 501, 503, 504),
    )
    async def start_migration(name: Name, body: MigrationRequest) -> MigrationDescription:
        """Begin to embed all documents by another served encoder, beside the vectors there are.

        The collection goes on as it is until it is cut over. Sent again it changes nothing.
        """
        migrations, migrator = _available(state)
        await asyncio.to_thread(state.store.describe, name)
        embedder = state.encoders.known(body.model)
        dim, fingerprint = embedder.encoder.manifest.dim, embedder.encoder.fingerprint
        audit.note(model=body.model, fingerprint=fingerprint)
        canaries, anew = await state.canaries.vectors(embedder), state.canaries.is_off(name)
        info = await asyncio.to_thread(
            lambda: migrations.begin(name, dim, fingerprint, canaries, anew=anew)
        )
        migrator.follow(name)
        return _about(info, migrator)

    @routes.get(
        "/{name}/migration",
        response_model=MigrationDescription,
        responses=documented(404, 422, 500, 501),
    )
    async def describe_migration(
        name: Name, k: K = 10, sample: Sample = 100
    ) -> MigrationDescription:
        """How far it is, and how the two encoders' answers differ."""
        migrations, migrator = _available(state)
        found = _about(await asyncio.to_thread(migrations.describe, name), migrator)
        if sample:
            overlap = await asyncio.to_thread(migrations.overlap, name, k, sample)
            found.report = None if overlap is None else MigrationReport(**asdict(overlap))
        return found

    @routes.post(
        "/{name}/migration/cut-over",
        response_model=MigrationDescription,
        responses=documented(404, 409, 422, 500, 501, 503, 504),
    )
    async def cut_over(name: Name) -> MigrationDescription:
        """Let the new encoder answer from now on; the old vectors are kept up to date beside it."""
        return await _changed_over(state, name, to_newer=True)

    @routes.post(
        "/{name}/migration/rollback",
        response_model=MigrationDescription,
        responses=documented(404, 409, 422, 500, 501, 503, 504),
    )
    async def roll_back(name: Name) -> MigrationDescription:
        """Let the old encoder answer again, with everything that was written meanwhile."""
        return await _changed_over(state, name, to_newer=False)

    @routes.post(
        "/{name}/migration/retire",
        response_model=CollectionDescription,
        responses=documented(404, 409, 422, 500, 501),
    )
    async def retire(name: Name) -> CollectionDescription:
        """Drop the old encoder's vectors, after a cut-over. There is no way back then."""
        migrations, _ = _available(state)
        await asyncio.to_thread(migrations.retire, name)
        return described(state, await asyncio.to_thread(state.store.describe, name))

    @routes.delete(
        "/{name}/migration", status_code=204, responses=documented(404, 409, 422, 500, 501)
    )
    async def abandon_migration(name: Name) -> None:
        """Drop the new encoder's vectors, before a cut-over; the collection stays as it is."""
        migrations, _ = _available(state)
        await asyncio.to_thread(migrations.abandon, name)

    return routes


def _available(state: State) -> tuple[Migrations, Migrator]:
    if state.migrator is None:
        raise StoreUnsupported(
            "collections on Milvus are moved to another encoder by a command, while nobody writes to "
            "them: mexma-index --data http://HOST:19530 migrate NAME MODEL"
        )
    return state.migrator.migrations, state.migrator


def _about(info: MigrationInfo, migrator: Migrator) -> MigrationDescription:
    rate = migrator.documents_per_s(info.collection)
    left = info.documents - info.embedded - len(info.failed)
    return MigrationDescription(
        **asdict(info),
        share=info.embedded / info.documents if info.documents else 1.0,
        documents_per_s=rate,
        eta_s=left / rate if rate and left else (None if left else 0.0),
        blocked=migrator.blocked(info),
    )


async def _changed_over(state: State, name: str, *, to_newer: bool) -> MigrationDescription:
    migrations, migrator = _available(state)
    info = await asyncio.to_thread(migrations.describe, name)
    if (embedder := state.encoders.get(info.other)) is None:
        raise MigrationConflict(
            f"encoder {info.other} is not served, so what was written last cannot be embedded by "
            "it; start with its model first"
        )
    kept = await asyncio.to_thread(migrations.canaries, name)
    # The way back to an encoder that is off stays open: it is asked for because of something worse.
    if to_newer and kept is not None:
        with embedder.holders:
            found = lowest_cosine(kept, await state.canaries.vectors(embedder))
        if found < BOUND:
            raise CanaryMismatch(
                f"encoder {info.other} is not what it was when the migration began: cosine "
                f"{found:.4f}, at least {BOUND} is expected; give it up and begin again"
            )
    change = migrations.cut_over if to_newer else migrations.roll_back
    with embedder.holders:
        info = await asyncio.to_thread(change, name, migrator.embed_at_once(embedder))
    await state.canaries.check(name)
    return _about(info, migrator)
