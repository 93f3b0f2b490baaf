"""What a disk holds after the power fails, from a record of what a process did to it.

    record(folder)            environment for a process whose work below `folder` is recorded
    Disk.replayed(log, upto)  the disk after so many records
    disk.survivors(...)       one directory that could be found after the power failed then

A disk promises what POSIX does and no more: what was written to a file survives once the file
has been synced, and a name in a directory once the directory has been. Of the rest anything may
survive: of each file any of its writes by sectors, or its new length without them; of each
directory's changes the first few.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

SECTOR = 512
HEAD = struct.Struct("<siqI")
Survival = Literal["synced", "named", "lengths", "some", "all"]
"""Of what was not synced: nothing, names only, names and lengths, some of it, everything."""

Among = Callable[["Directory"], Survival]
"""How much survives of a directory's own names, where that is not the same for all of them."""


class Record(NamedTuple):
    kind: str
    descriptor: int
    number: int
    first: bytes
    second: bytes


def build(folder: Path) -> Path:
    """Compile the recorder."""
    source = Path(__file__).with_name("disk_recorder.c")
    library = folder / "recorder.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


def recording(library: Path, root: Path, log: Path) -> dict[str, str]:
    """The environment of a process that is to be recorded."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "RECORD_ROOT": str(root),
        "RECORD_LOG": str(log),
    }


def records(log: Path) -> Iterator[Record]:
    """All there are: the recorder lets a process end between two of them only."""
    content, at = memoryview(log.read_bytes()), 0
    while at < len(content):
        kind, descriptor, number, size = HEAD.unpack_from(content, at)
        at += HEAD.size
        first = bytes(content[at : at + size])
        at += size
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        second = bytes(content[at : at + size])
        at += size
        yield Record(kind.decode(), descriptor, number, first, second)


@dataclass(eq=False)
class File:
    """durable: what is certain to be found. pending: what was done since, as (offset, bytes), or
    (length, None) for a new length."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.durable, *change)
        self.pending.clear()

    def survivor(self, survival: Survival, choose: random.Random) -> bytes:
        content = bytearray(self.durable)
        if survival in ("synced", "named"):
            return bytes(content)
        for at, data in self.pending:
            if survival == "all" or data is None:
                if survival != "some" or choose.random() < 0.5:
                    apply(content, at, data)
                continue
            if survival == "lengths" or choose.random() < 0.5:
                content.extend(bytes(max(0, at + len(data) - len(content))))
            if survival == "some":
                for start in range(0, len(data), SECTOR):
                    if choose.random() < 0.5:
                        apply(content, at + start, data[start : start + SECTOR])
        return bytes(content)


def apply(content: bytearray, at: int, data: bytes | None) -> None:
    """Write `data` at `at`, or without data set the length to `at`."""
    end = at if data is None else at + len(data)
    content.extend(bytes(max(0, end - len(content))))
    if data is None:
        del content[at:]
    else:
        content[at:end] = data


@dataclass(eq=False)
class Directory:
    """names: as programs see them. durable: those certain to be found. pending: changes since, each
    some names with what they stand for from then on, None for nothing."""

    names: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[dict[str, File | Directory | None]] = field(default_factory=list)

    def change(self, change: dict[str, File | Directory | None]) -> None:
        self.pending.append(change)
        rename(self.names, change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()

    def survivor(self, survival: Survival, choose: random.Random) -> dict[str, File | Directory]:
        names, upto = dict(self.durable), len(self.pending)
        if survival == "synced":
            upto = 0
        elif survival == "some":
            upto = choose.randint(0, upto)
        for change in self.pending[:upto]:
            rename(names, change)
        return names


def rename(names: dict[str, File | Directory], change: dict[str, File | Directory | None]) -> None:
    for name, what in change.items():
        names.pop(name, None)
        if what is not None:
            names[name] = what


class Disk:
    """The files and directories below `root`, which itself is there from the beginning."""

    def __init__(self, root: Path):
        self.root = root
        self._top = Directory()
        self._open: dict[int, File | Directory] = {}
        self.marks: list[bytes] = []
        self.unsynced = 0  # changes, ever

    def do(self, record: Record) -> None:
        """The next thing that happened."""
        kind, descriptor, number = record.kind, record.descriptor, record.number
        if kind == "m":
            self.marks += record.first.splitlines()
        elif kind == "o":
            self._opened(descriptor, number, record.first)
        elif kind == "c":
            self._open.pop(descriptor, None)
        elif kind in "wt":
            file = self._open[descriptor]
            assert isinstance(file, File)
            file.pending.append((number, record.first if kind == "w" else None))
        elif kind == "s":
            self._open[descriptor].sync()
        elif kind == "d":
            self._name(record.first, Directory())
        elif kind == "u":
            self._name(record.first, None)
        elif kind == "l":
            self._name(record.second, self._found(record.first))
        else:
            assert kind == "r", record
            self._renamed(record.first, record.second)

    def _opened(self, descriptor: int, how: int, path: bytes) -> None:
        created, emptied = how & 1, how & 2
        if created:
            self._name(path, File())
        found = self._found(path)
        if emptied:
            assert isinstance(found, File)
            found.pending.append((0, None))
        self._open[descriptor] = found

    def _place(self, path: bytes) -> tuple[Directory, str]:
        place = Path(path.decode())
        parent = self._found(bytes(place.parent))
        assert isinstance(parent, Directory)
        return parent, place.name

    def _found(self, path: bytes) -> File | Directory:
        here: File | Directory = self._top
        for part in Path(os.path.normpath(path.decode())).relative_to(self.root).parts:
            assert isinstance(here, Directory)
            here = here.names[part]
        return here

    def _name(self, path: bytes, what: File | Directory | None) -> None:
        parent, name = self._place(path)
        parent.change({name: what})

    def _renamed(self, source: bytes, target: bytes) -> None:
        what = self._found(source)
        (old, name), (new, other) = self._place(source), self._place(target)
        if old is new:
            old.change({name: None, other: what})  # one change: the disk does both or neither
        else:
            new.change({other: what})
            old.change({name: None})

    def unsettled(self) -> dict[str, Directory]:
        """The directories with names that were changed and not synced, by their path below the root."""
        return {path: d for path, d in self._directories(self._top, "") if d.pending}

    def _directories(self, directory: Directory, path: str) -> Iterator[tuple[str, Directory]]:
        yield path, directory
        for name, what in directory.names.items():
            if isinstance(what, Directory):
                yield from self._directories(what, f"{path}/{name}")

    def survivors(
        self, target: Path, survival: Survival, choose: random.Random, among: Among | None = None
    ) -> None:
        """Write what could be found after the power failed now into the new directory `target`."""
        self._write(self._top, target, survival, choose, {}, among or (lambda _: survival))

    def _write(
        self,
        directory: Directory,
        target: Path,
        survival: Survival,
        choose: random.Random,
        written: dict[int, Path],
        among: Among,
    ) -> None:
        target.mkdir()
        for name, what in directory.survivor(among(directory), choose).items():
            if isinstance(what, Directory):
                self._write(what, target / name, survival, choose, written, among)
            elif id(what) in written:
                (target / name).hardlink_to(written[id(what)])
            else:
                (target / name).write_bytes(what.survivor(survival, choose))
                written[id(what)] = target / name


def tree(root: Path) -> dict[str, bytes | None]:
    """Path -> content, None for a directory. Without SQLite's shared memory, which is mapped, and
    means nothing to the next who opens the file."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
        if not path.name.endswith("-shm")
    }
