"""`mexma-index`: look after the collections in a folder, beside the service or without it.

`verify` and `backup` read only and may run beside a service that has the folder open; `restore`,
`rebuild`, `copy` and `migrate` change it and refuse to. The last two also go to a Milvus server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from mexma.errors import CollectionNotFound, MexmaError, StoreCorrupt, StoreError
from service import migrate_command
from service.places import opened, place_from
from service.store import backups
from service.store.backups import Backups
from service.store.collection import DATABASE
from service.store.copying import copy_collection, remove_surplus, verify_copy
from service.store.database import Database
from service.store.folders import Folders, place_of
from service.store.generations import FOLDER, Generations
from service.store.local import LocalStore

ON_MILVUS = ("copy", "migrate")


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and one sentence, or one line per damage, when something is wrong."""
    options = _parser().parse_args(arguments)
    try:
        if isinstance(options.data, Path) and not options.data.is_dir():
            raise StoreError(f"--data must be a folder of collections, {options.data} is none")
        if isinstance(options.data, str) and options.verb not in ON_MILVUS:
            raise StoreError(
                f"at a Milvus address there are only {' and '.join(ON_MILVUS)}; --data must be a folder"
            )
        options.run(options)
    except MexmaError as error:
        sys.exit(f"mexma-index: {error}")
    except OSError as error:
        sys.exit(f"mexma-index: {error.filename}: {error.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mexma-index", description=__doc__)
    parser.add_argument(
        "--data",
        type=place_from,
        default=place_from(os.environ.get("MEXMA_DATA_DIR", "data")),
        help="the folder of collections (MEXMA_DATA_DIR, or ./data); for copy and migrate also a Milvus "
        "address",
    )
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="VERB")

    def verb(run: Callable[[argparse.Namespace], None], name: str, text: str, **names: str) -> None:
        added = verbs.add_parser(name, help=text, description=text)
        for argument, meaning in names.items():
            optional = argument.endswith("_")
            added.add_argument(argument.rstrip("_"), nargs="?" if optional else None, help=meaning)
        added.set_defaults(run=run)

    one = "the collection"
    verb(
        _verify,
        "verify",
        "read every byte of collections, indexes and snapshots, and name what is damaged",
        collection_="one collection (all)",
    )
    verb(_backup, "backup", "make a snapshot of a collection", collection=one)
    verb(
        _restore,
        "restore",
        "put a snapshot in the place of a collection",
        collection=one,
        snapshot="its id, or a folder copied from elsewhere",
    )
    verb(
        _rebuild,
        "rebuild",
        "make a collection's approximate index anew from its database",
        collection=one,
    )
    verb(
        _copy,
        "copy",
        "copy a collection's documents and vectors, compare the copy, and remove what only it has",
        collection=one,
        to="another folder, which is made if need be, or a Milvus address such as http://host:19530 "
        "(MEXMA_MILVUS_TOKEN, MEXMA_MILVUS_DATABASE and MEXMA_MILVUS_INDEX hold for it)",
    )
    migrate_command.add_to(verbs)
    return parser


def _verify(options: argparse.Namespace) -> None:
    found = Folders(options.data).collections()
    if options.collection and options.collection not in found:
        raise CollectionNotFound(f"there is no collection {options.collection!r}")
    damages: list[str] = []
    for name in [options.collection] if options.collection else sorted(found):
        if (place := place_of(found[name])) is None:
            damages.append(f"{options.data} must hold {name!r} once, it holds it twice")
            continue
        for folder in filter(None, (place.serving, place.other)):
            damages += _damages_of(folder, name)
        damages += _damages_of_backups(Backups(options.data, name))
    if damages:
        sys.exit("\n".join(f"mexma-index: {damage}" for damage in damages))


def _damages_of(folder: Path, name: str) -> Iterator[str]:
    try:
        with closing(Database.open(folder / DATABASE, alone=False)) as database:
            rows = 0
            with tqdm(desc=f"{name}: documents", unit=" rows") as bar:
                for part in database.scan():
                    rows += len(part.rids)
                    bar.update(len(part.rids))
            header = database.header
        print(f"{name}: {rows} documents verified")
        generations = Generations(folder, header.dim, header.fingerprint)
        for generation in generations.all():
            yield from _checked(generation, generations.verify)
    except StoreError as error:
        yield str(error)


def _damages_of_backups(kept: Backups) -> Iterator[str]:
    for backup in sorted(kept.folder.glob("[0-9]*-*")):
        yield from _checked(backup, backups.verify)


def _checked(
    folder: Path, verify: Callable[[Path, Callable[[int], object]], object]
) -> Iterator[str]:
    try:
        with _bytes(folder.name) as progress:
            verify(folder, progress)
        print(f"{folder.name}: verified")
    except StoreCorrupt as error:
        yield str(error)


@contextmanager
def _bytes(what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    with tqdm(desc=what, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield bar.update


def _backup(options: argparse.Namespace) -> None:
    folders = Folders(options.data).collections().get(options.collection, [])
    place = place_of(folders) if folders else None
    if place is None:
        raise CollectionNotFound(f"there is no collection {options.collection!r}")
    with (
        closing(Database.open(place.serving / DATABASE, alone=False)) as database,
        tqdm(desc=options.collection, unit=" pages") as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = Backups(options.data, options.collection).make(database, place.serving, progress)
    print(f"{made.id}: {made.count} documents, {made.bytes} bytes")


def _restore(options: argparse.Namespace) -> None:
    given = Path(options.snapshot)
    with closing(LocalStore(options.data)) as store:
        backup = (
            given if given.is_dir() else Backups(options.data, options.collection).find(given.name)
        )
        size = sum(f.stat().st_size for f in backup.glob("*.sqlite"))
        with _bytes(options.collection, size) as progress:
            info = store.restore_from(options.collection, backup, progress)
        store.settle()
    print(f"{info.name}: {info.count} documents")


def _rebuild(options: argparse.Namespace) -> None:
    for folder in Folders(options.data).collections().get(options.collection, []):
        lock = Folders(options.data).lock()
        try:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        finally:
            os.close(lock)
    with closing(LocalStore(options.data)) as store:
        before = store.describe(options.collection)
        with tqdm(desc=options.collection, total=before.count, unit=" rows") as bar:
            while not store.settle(timeout_s=0.5):
                bar.update(store.rows_indexed(options.collection) - bar.n)
            bar.update(before.count - bar.n)
        after = store.describe(options.collection)
    print(f"{after.name}: {after.count} documents, searched {after.index_state}")


def _copy(options: argparse.Namespace) -> None:
    if str(options.data) == str(place_from(options.to)):
        raise StoreError(f"a copy leads elsewhere, {options.to} is where the collection is")
    with (
        closing(opened(options.data)) as source,
        closing(opened(place_from(options.to))) as target,
    ):
        info = source.describe(options.collection)
        with tqdm(desc=f"{info.name}: copied", total=info.count, unit=" rows") as bar:
            copied = copy_collection(source, target, info.name, bar.update)
        with tqdm(desc=f"{info.name}: compared", total=copied, unit=" rows") as bar:
            copied, surplus = verify_copy(source, target, info.name, bar.update)
        said = f"{info.name}: {copied} documents in {options.to}"
        if surplus:
            with tqdm(desc=f"{info.name}: removed", total=len(surplus), unit=" rows") as bar:
                removed = remove_surplus(target, info.name, surplus, bar.update)
            are, were = ("is", "was") if removed == 1 else ("are", "were")
            said += f"; {removed} that {are} not in the source {were} removed"
        print(said)


if __name__ == "__main__":
    main()
