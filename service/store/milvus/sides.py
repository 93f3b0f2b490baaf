"""What is kept in Milvus under one name: the collection that answers, and the one beside it.

    mexma_notes      answers
    mexma_notes_b    beside it before a cut-over: of the new encoder
    mexma_notes_k    beside it after one: kept, of the old encoder
    mexma_notes_r    answered until now, while the way back is taken

None of the last three is a name of ours (`our_name`), so they are never listed. Milvus renames one
collection at a time, which is atomic, and no two of them can have one name:

    cut over     "" -> k, b -> ""
    roll back    "" -> r, k -> "", r -> b

So for a moment, or for as long as a command that was killed there is not called again, nothing has
the name. Which names there are says what was going on, and what answered last is k or r, so `mend`
renames it back, and nothing has to be remembered. An alias could be pointed elsewhere in one step, but
Milvus has none of a name that a collection has: each would have to be made under another name.

Refuses to know: what is in the collections.
"""

from __future__ import annotations

from collections.abc import Callable

from mexma.errors import CollectionAway, CollectionNotFound, StoreError
from service.store.milvus.connection import Connection
from service.store.milvus.rows import Stamp, milvus_name
from service.store.steps import reached

SERVING, NEWER, OLDER, ASIDE = "", "_b", "_k", "_r"


class Sides:
    def __init__(self, milvus: Connection):
        self._milvus = milvus

    def all(self, name: str) -> dict[str, Stamp]:
        """The collections of this name that are ours, by side."""
        there, found = set(self._milvus.collections()), {}
        for side in (SERVING, NEWER, OLDER, ASIDE):
            if milvus_name(name) + side in there:
                try:
                    found[side] = self.stamp(name, side)
                except CollectionNotFound:
                    continue  # dropped meanwhile
                except StoreError as error:
                    if type(error) is not StoreError:  # else it is somebody else's
                        raise
        return found

    def stamp(self, name: str, side: str) -> Stamp:
        """Raises CollectionNotFound, and StoreError for one that is not ours."""
        described = self._milvus.call("describe_collection", milvus_name(name) + side)
        return Stamp.read(name, described, side)

    def answering(self, name: str) -> Stamp | None:
        """The collection that answers, looked for once more where there seemed to be none.

        Raises CollectionAway where a change-over is going on, or was cut off.
        """
        found = self.all(name)
        if SERVING not in found and (OLDER in found or ASIDE in found):
            raise CollectionAway(
                f"collection {name!r} is being changed over to another encoder; retry. Where it stays "
                "so, the command that does it was cut off: run mexma-index migrate again"
            )
        return found.get(SERVING)

    def beside(self, name: str) -> list[Stamp]:
        """All of this name that do not answer; at most one, but in the middle of a change-over."""
        return [stamp for side, stamp in self.all(name).items() if side != SERVING]

    def mend(self, name: str) -> bool:
        """Undo a change-over that was cut off in the middle, or end it. Whether one was.

        Raises StoreError where the name was given to a further collection meanwhile.
        """
        found = self.all(name)
        mended = False
        if SERVING not in found and (OLDER in found or ASIDE in found):
            back = ASIDE if ASIDE in found else OLDER
            self._rename(name, back, SERVING)
            found[SERVING] = found.pop(back)
            mended = True
            reached("milvus: mended")
        elif ASIDE in found and NEWER not in found:
            self._rename(name, ASIDE, NEWER)
            found[NEWER] = found.pop(ASIDE)
            mended = True
            reached("milvus: mended")
        if len(found) > 2:
            names = ", ".join(milvus_name(name) + side for side in found)
            raise StoreError(
                f"in Milvus there are {names}, and at most two are expected: the name was given to a new "
                "collection while it was being changed over. Rename that one, or drop it, with a tool of "
                "Milvus's, and run this again"
            )
        return mended

    def cut_over(self, name: str, seen_to: Callable[[Stamp], None]) -> None:
        """Let b answer and keep what answered. seen_to: is given the latter when nobody can write to
        it by its name any more; what it raises undoes the change."""
        self._put_aside(name, OLDER, seen_to)
        self._rename(name, NEWER, SERVING)
        reached("milvus: other renamed")

    def roll_back(self, name: str, seen_to: Callable[[Stamp], None]) -> None:
        """Let k answer again, and put what answered back to b, likewise."""
        self._put_aside(name, ASIDE, seen_to)
        self._rename(name, OLDER, SERVING)
        reached("milvus: other renamed")
        self._rename(name, ASIDE, NEWER)
        reached("milvus: aside renamed")

    def _put_aside(self, name: str, side: str, seen_to: Callable[[Stamp], None]) -> None:
        self._rename(name, SERVING, side)
        reached("milvus: serving renamed")
        try:
            seen_to(self.stamp(name, side))
        except StoreError:
            self._rename(name, side, SERVING)
            raise

    def _rename(self, name: str, old: str, new: str) -> None:
        self._milvus.call("rename_collection", milvus_name(name) + old, milvus_name(name) + new)

    def drop(self, stamp: Stamp) -> None:
        self._milvus.call("drop_collection", stamp)
