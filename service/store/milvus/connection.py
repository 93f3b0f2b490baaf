"""The one place that knows pymilvus: calls with a deadline, and what its errors mean.

The client is made at the first use and mends itself, so a service starts without its Milvus and
goes on when it is back. Every read is strongly consistent: it sees all writes acknowledged before.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mexma.errors import CollectionNotFound, InstallationError, StoreFailed, StoreUnavailable
from service.store.milvus.rows import STAMP, Stamp, fields
from service.store.steps import reached

if TYPE_CHECKING:
    from pymilvus import MilvusClient

log = logging.getLogger(__name__)

MAX_ROWS = 16_384
"""What one query or search of Milvus may return, per row of the search."""
NOT_FOUND, NOT_LOADED = 100, 101
LOST: set[int | str] = {2, "UNAVAILABLE"}
"""Not reachable."""
AWAY = LOST | {8, 9, 106, "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "ABORTED"}
"""Or refusing for its load or quota, still loading, or too slow: later it may well answer."""
SCALAR_INDEXES = ("seq", "lang", "subtag", "terms")

Rows = list[dict[str, Any]]


class Connection:
    """To one database of one server. Thread-safe.

    uri: http:// or https://, with the port. token: "user:password" or an API key, "" for none.
    timeout_s: for each call, pymilvus's own retries included.
    """

    def __init__(self, uri: str, token: str, database: str, timeout_s: float):
        if not uri.startswith(("http://", "https://")):
            raise StoreFailed(f"a Milvus address begins with http:// or https://, got {uri[:80]!r}")
        place = urlsplit(uri)
        self.place = f"{place.hostname}:{place.port or 19530}"
        self._arguments = {"uri": uri, "token": token, "db_name": database}
        self._timeout_s = timeout_s
        self._client: MilvusClient | None = None
        self._connecting = threading.Lock()
        self._closed = False
        self._lost = False
        self._probe = threading.Lock()
        try:
            import pymilvus  # noqa: PLC0415 - only where it was chosen
        except ImportError as e:
            raise InstallationError(
                "a Milvus address is given and pymilvus is not installed: pip install -e '.[milvus]'"
            ) from e
        self._pymilvus: Any = pymilvus
        # It logs each refusal with a traceback; all of them reach the caller as our errors.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

    def _connected(self, *, probing: bool = False) -> MilvusClient:
        with self._connecting:
            if self._closed:
                raise StoreFailed(f"the store at {self.place} is closed")
            if self._client is None:
                if self._lost and not probing:
                    raise self._away("it is being tried")
                self._client = self._pymilvus.MilvusClient(
                    **self._arguments, timeout=self._timeout_s, dedicated=True
                )
            return self._client

    def call(self, method: str, stamp: Stamp | str, *args: Any, **kwargs: Any) -> Any:
        """A method of the client on a collection, given by its stamp or its Milvus name.

        A collection that is not loaded (a server that restarted, a creation that was cut off)
        is made ready and asked again. Raises CollectionNotFound, StoreUnavailable, and
        StoreFailed for whatever else Milvus refuses.
        """
        name = stamp if isinstance(stamp, str) else stamp.collection
        try:
            return self._call(method, name, *args, **kwargs)
        except self._pymilvus.MilvusException as e:
            if e.code != NOT_LOADED or isinstance(stamp, str):
                raise self._meaning(e, stamp) from e
        except Exception as e:
            raise self._meaning(e, stamp) from e
        try:
            self._make_ready(stamp)
            return self._call(method, name, *args, **kwargs)
        except Exception as e:
            raise self._meaning(e, stamp) from e

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Once Milvus did not answer, one call at a time tries it until one is answered; the others
        are refused at once, or they would hold all the threads of the service that long."""
        if not self._lost:
            return self._tried(method, *args, **kwargs)
        if not self._probe.acquire(blocking=False):
            raise self._away("it is being tried")
        try:
            return self._tried(method, *args, probing=True, **kwargs)
        finally:
            self._probe.release()

    def _tried(self, method: str, *args: Any, probing: bool = False, **kwargs: Any) -> Any:
        client = None
        try:
            client = self._connected(probing=probing)
            answer = getattr(client, method)(*args, timeout=self._timeout_s, **kwargs)
        except Exception as e:
            code = _name_or_number(e)
            if client is not None and client is not self._client and not self._closed:
                raise self._away("the connection was lost") from e  # by another call of this moment
            # else a refusal is an answer
            self._note(lost=code in LOST or code == "DEADLINE_EXCEEDED", said=_said(e))
            if self._lost:
                self._forget()
            raise
        self._note(lost=False)
        return answer

    def _note(self, *, lost: bool, said: str = "") -> None:
        """Whether it answers; a change is logged, since callers are not told where it is."""
        if lost and not self._lost:
            log.error("Milvus at %s does not answer: %s", self.place, said)
        elif self._lost and not lost:
            log.info("Milvus at %s answers again", self.place)
        self._lost = lost

    def _forget(self) -> None:
        """Connect anew next time: gRPC would wait longer after each attempt, up to two minutes."""
        with self._connecting:
            current, self._client = self._client, None
        if current is not None:
            current.close()

    def _meaning(self, error: Exception, stamp: Stamp | str) -> Exception:
        if not isinstance(error, self._pymilvus.MilvusException) and not hasattr(error, "code"):
            return error  # ours already, or a defect of ours
        code = _name_or_number(error)
        said = _said(error)
        if code == NOT_FOUND:
            name = stamp if isinstance(stamp, str) else stamp.name
            return CollectionNotFound(f"there is no collection {name!r}")
        if code in AWAY or getattr(error, "retriable", False):
            if code not in LOST:
                log.warning("Milvus at %s refused for now: %s", self.place, said)
            return self._away(said)
        return StoreFailed(f"Milvus at {self.place} refused: {said}")

    def _away(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(f"Milvus at {self.place} does not answer: {why}")

    def collections(self) -> list[str]:
        """The Milvus names of all collections in the database."""
        try:
            found: list[str] = self._call("list_collections")
        except Exception as e:
            raise self._meaning(e, "") from e
        return found

    def create(self, stamp: Stamp) -> None:
        """Make a collection that is ready for use. One of this name that exists stays as it is."""
        types = self._pymilvus.DataType
        schema = self._pymilvus.MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=False, description=stamp.write()
        )
        for name, kind, properties in fields(stamp):
            if element := properties.get("element_type"):
                properties["element_type"] = types[element]
            schema.add_field(name, types[kind], **properties)
        self.call(
            "create_collection",
            stamp.collection,
            schema=schema,
            properties={STAMP: stamp.write()},
            num_shards=1,
            consistency_level="Strong",
        )
        reached("milvus: collection made")
        try:
            self._make_ready(stamp)
        except Exception as e:
            raise self._meaning(e, stamp) from e

    def _make_ready(self, stamp: Stamp) -> None:
        client, limit = self._connected(), self._timeout_s
        if not client.list_indexes(stamp.collection, field_name=stamp.vector, timeout=limit):
            index = self._pymilvus.MilvusClient.prepare_index_params()
            parameters = {"M": 16, "efConstruction": 200} if stamp.index == "HNSW" else {}
            index.add_index(
                stamp.vector, index_type=stamp.index, metric_type="COSINE", params=parameters
            )
            client.create_index(stamp.collection, index, timeout=limit, sync=False)
            for name in SCALAR_INDEXES:
                self._index_scalar(client, stamp, name)
        client.load_collection(stamp.collection, timeout=limit)

    def _index_scalar(self, client: MilvusClient, stamp: Stamp, field: str) -> None:
        """Only speed: a server that has no such index (Milvus Lite, for arrays) does without."""
        index = self._pymilvus.MilvusClient.prepare_index_params()
        index.add_index(field, index_type="INVERTED")
        try:
            client.create_index(stamp.collection, index, timeout=self._timeout_s, sync=False)
        except self._pymilvus.MilvusException as e:
            if isinstance(self._meaning(e, stamp), StoreUnavailable):
                raise

    def query(self, stamp: Stamp, where: str, output: list[str], limit: int = MAX_ROWS) -> Rows:
        """Up to `limit` rows that meet an expression, in any order."""
        found: Rows = self.call(
            "query",
            stamp,
            filter=where,
            output_fields=output,
            limit=limit,
            consistency_level="Strong",
        )
        return found

    def rows(self, stamp: Stamp, keys: list[str], output: list[str]) -> dict[str, dict[str, Any]]:
        """The rows that exist of these keys, by key."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(keys), 1_000):
            part = self.call(
                "query",
                stamp,
                ids=keys[start : start + 1_000],
                output_fields=["key", *output],
                consistency_level="Strong",
            )
            found.update((row["key"], row) for row in part)
        return found

    def count(self, stamp: Stamp, where: str) -> int:
        [row] = self.call(
            "query", stamp, filter=where, output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(row["count(*)"])

    def close(self) -> None:
        """Every later use raises StoreFailed."""
        with self._connecting:
            self._closed = True
            if self._client is not None:
                self._client.close()
                self._client = None


def _said(error: Exception) -> str:
    """What Milvus or gRPC says, in one line."""
    said = getattr(error, "message", None) or getattr(error, "details", lambda: error)()
    return " ".join(str(said).split())[:300]


def _name_or_number(error: Exception) -> int | str | None:
    """The code of an error: Milvus's number, or the name of gRPC's status."""
    code = getattr(error, "code", None)
    code = code() if callable(code) else code
    return getattr(code, "name", code) if not isinstance(code, int) else int(code)
