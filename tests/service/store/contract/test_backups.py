"""Backups: what was there is there again."""

from __future__ import annotations

import pytest

from mexma.errors import BackupNotFound, CollectionNotFound, InputError
from service.store.protocol import Query, Selection

from .given import PRINT, fill, vectors


def test_backups_hold_what_was_there(backing_store):
    store = backing_store
    fill(store, {"a": ("en", [1, 0]), "b": ("fi", [0, 1])})
    assert store.backups("c") == []
    backup = store.back_up("c")
    assert (backup.collection, backup.count, backup.dim) == ("c", 2, 2)
    assert backup.fingerprint == PRINT
    cursor = store.scroll("c", Selection(), 1).cursor
    store.delete("c", ["a"])
    fill(store, {"b": ("sv", [1, 1]), "d": ("en", [1, 0])})
    assert store.restore("c", backup.id).count == 2
    assert store.describe("c").languages == {"en": 1, "fi": 1}
    [hits] = store.search("c", vectors([0, 1]), Query(), PRINT)
    assert [(h.id, h.lang) for h in hits] == [("b", "fi"), ("a", "en")]
    with pytest.raises(InputError, match="cursor"):
        store.scroll("c", Selection(), 1, cursor)
    fill(store, {"e": ("en", [1, 0])})
    assert store.describe("c").count == 3
    store.drop("c")
    assert store.backups("c") == [backup]
    assert store.restore("c", backup.id).count == 2
    store.remove_backup("c", backup.id)
    assert store.backups("c") == []


def test_backups_of_what_is_not_there(backing_store):
    store = backing_store
    with pytest.raises(CollectionNotFound):
        store.back_up("c")
    store.create("c", 2, PRINT)
    for use in (store.restore, store.remove_backup):
        with pytest.raises(BackupNotFound, match="nothing"):
            use("c", "nothing")
    with pytest.raises(InputError, match="collection name"):
        store.backups("../c")
