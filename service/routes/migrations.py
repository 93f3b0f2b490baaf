"""Moving a collection to another encoder: start, look, cut over, roll back, give up or finish."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from mexma.errors import MigrationConflict, StoreError
from service.collection_schemas import (
    CollectionDescription,
    MigrationDescription,
    MigrationReport,
    MigrationRequest,
)
from service.embedder import Embedder
from service.http_errors import BODY_ERRORS, documented
from service.json_body import JsonRoute
from service.migrator import Migrator
from service.routes.collections import PREFIX, Name, described
from service.state import State
from service.store.migrations import Migrating, Migrations
from service.store.pair import MigrationInfo

K = Annotated[int, Query(ge=1, le=1000, description="Neighbours that the report compares.")]
Sample = Annotated[
    int, Query(ge=0, le=10_000, description="Documents that the report asks for; 0 makes none.")
]


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["migration"], prefix=PREFIX)
    store, encoders = state.store, state.encoders

    def available() -> tuple[Migrations, Migrator]:
        if not isinstance(store, Migrating) or state.migrator is None:
            raise StoreError("this store does not move collections to other encoders")
        return store.migrations, state.migrator

    def about(info: MigrationInfo, migrator: Migrator) -> MigrationDescription:
        rate = migrator.documents_per_s(info.collection)
        left = info.documents - info.embedded - len(info.failed)
        return MigrationDescription(
            **asdict(info),
            share=info.embedded / info.documents if info.documents else 1.0,
            documents_per_s=rate,
            eta_s=left / rate if rate and left else (None if left else 0.0),
            blocked=migrator.blocked(info),
        )

    def other(info: MigrationInfo) -> Embedder:
        """The one that does not serve. Raises MigrationConflict where it is not there at all."""
        if (found := encoders.get(info.other)) is None:
            raise MigrationConflict(
                f"encoder {info.other} is not served, so what was written last cannot be embedded "
                "by it; start with its model first"
            )
        return found

    @routes.post(
        "/{name}/migration",
        response_model=MigrationDescription,
        responses=documented(*BODY_ERRORS, 404, 409, 500),
    )
    async def start_migration(name: Name, body: MigrationRequest) -> MigrationDescription:
        """Begin to embed all documents by another served encoder, beside the vectors there are.

        The collection goes on as it is until it is cut over. Sent again it changes nothing.
        """
        migrations, migrator = available()
        await asyncio.to_thread(store.describe, name)
        encoder = encoders.known(body.model).encoder
        info = await asyncio.to_thread(
            migrations.begin, name, encoder.manifest.dim, encoder.fingerprint
        )
        migrator.follow(name)
        return about(info, migrator)

    @routes.get(
        "/{name}/migration",
        response_model=MigrationDescription,
        responses=documented(404, 422, 500),
    )
    async def describe_migration(
        name: Name, k: K = 10, sample: Sample = 100
    ) -> MigrationDescription:
        """How far it is, and how the two encoders' answers differ."""
        migrations, migrator = available()
        found = about(await asyncio.to_thread(migrations.describe, name), migrator)
        if sample:
            overlap = await asyncio.to_thread(migrations.overlap, name, k, sample)
            found.report = None if overlap is None else MigrationReport(**asdict(overlap))
        return found

    @routes.post(
        "/{name}/migration/cut-over",
        response_model=MigrationDescription,
        responses=documented(404, 409, 422, 500, 503, 504),
    )
    async def cut_over(name: Name) -> MigrationDescription:
        """Let the new encoder answer from now on; the old vectors are kept up to date beside it."""
        migrations, migrator = available()
        embedder = other(await asyncio.to_thread(migrations.describe, name))
        embed = migrator.embed_at_once(embedder)
        return about(await asyncio.to_thread(migrations.cut_over, name, embed), migrator)

    @routes.post(
        "/{name}/migration/rollback",
        response_model=MigrationDescription,
        responses=documented(404, 409, 422, 500, 503, 504),
    )
    async def roll_back(name: Name) -> MigrationDescription:
        """Let the old encoder answer again, with everything that was written meanwhile."""
        migrations, migrator = available()
        embedder = other(await asyncio.to_thread(migrations.describe, name))
        embed = migrator.embed_at_once(embedder)
        return about(await asyncio.to_thread(migrations.roll_back, name, embed), migrator)

    @routes.post(
        "/{name}/migration/retire",
        response_model=CollectionDescription,
        responses=documented(404, 409, 422, 500),
    )
    async def retire(name: Name) -> CollectionDescription:
        """Drop the old encoder's vectors, after a cut-over. There is no way back then."""
        migrations, _ = available()
        await asyncio.to_thread(migrations.retire, name)
        return described(await asyncio.to_thread(store.describe, name))

    @routes.delete("/{name}/migration", status_code=204, responses=documented(404, 409, 422, 500))
    async def abandon_migration(name: Name) -> None:
        """Drop the new encoder's vectors, before a cut-over; the collection stays as it is."""
        migrations, _ = available()
        await asyncio.to_thread(migrations.abandon, name)

    return routes
