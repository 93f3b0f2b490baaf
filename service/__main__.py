"""`mexma-serve`: load the model, open the store, listen."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import re
import signal
import socket
import ssl
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from mexma import __version__
from mexma.encoder import OnnxEncoder
from mexma.errors import InstallationError, MexmaError, StoreError
from mexma.installation import check_installation
from service import logs
from service.app import create_app
from service.connection import Connections, protocol, room_for_connections
from service.draining import DrainingServer
from service.engine.tuning import Tuning
from service.heap import give_back
from service.priority import lowered
from service.security.access import guard_of
from service.security.audit import Audit
from service.settings import Settings
from service.store.local import LocalStore
from service.store.protocol import Store
from service.store.resident import Gpu
from service.tracing import start_tracing
from service.workers.engine_socket import listen
from service.workers.front import ENGINE_SOCKET, HTTP_SOCKET
from service.workers.liveness import answering
from service.workers.supervisor import Supervisor

log = logging.getLogger("mexma")

# The engine's thread needs the interpreter for a moment between two batches, and the event loop keeps it
# this long when it has much to do; Python's own 5 ms are longer than a batch of the engine.
SWITCH_INTERVAL_S = 0.0005

# Connections that wait to be accepted, as far as the kernel allows (`net.core.somaxconn`, mostly 4,096).
# Who comes beyond is not told so, and tries again after 1 s, 3 s, 7 s and so on.
BACKLOG = 65_535

# Objects made between two looks for cycles. Python's own 700 are a few requests, and with thousands of them
# waiting to be looked at each time that was a sixth of the event loop's time.
COLLECT_EVERY = 10_000
# And of those looks, every so many go through all that is there: thousands of connections are no garbage.
ALL_EVERY = 10, 100

# Requests under way when SIGTERM comes have this long to finish.
GRACE_S = 30

# Longer than clients keep idle connections (httpx: 5 s, many: 60), so that it is they who close: a
# connection closed by the server just as a request is written is an error for the client.
KEEP_ALIVE_S = 75


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Exits with 1 and one sentence when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="mexma-serve",
        description="Load the model, open the store, and answer over HTTP until told to stop.",
        epilog="Settings are environment variables (docs/settings.md tells each one's story):\n\n"
        + _list_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mexma {__version__}")
    parser.parse_args(arguments)
    # uvicorn finishes what it accepted and then raises the signal again for whoever had it
    # before: that is us, and an orderly end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        serve(_settings())
    except MexmaError as error:
        sys.exit(f"mexma-serve: {error}")


def serve(settings: Settings) -> None:
    """Build the app from `settings` and run it. Raises MexmaError when it cannot start."""
    logs.configure(settings.log_level, settings.log_format)
    give_back()
    # uvicorn's own lines repeat what is said here.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, log.getEffectiveLevel()))
    for package, distribution in check_installation().items():
        log.debug("%s is provided by %s", package, distribution)
    # The tokenizer's own threads would compete with the engine's: texts of one request are
    # tokenised by one thread, requests by two.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if settings.api_keys_file is None and not _is_loopback(settings.host):
        log.warning(
            "there are no API keys (MEXMA_API_KEYS_FILE): whoever reaches %s may read, write and drop",
            settings.host,
        )
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise InstallationError(
            f"MEXMA_MODELS_DIR {settings.models_dir.absolute()} is no directory; a reload takes models "
            "below it"
        )
    guard_of(settings)  # a file of keys that cannot be used is said before anything slow
    audit = Audit(settings.audit_log)
    listener = _listen(settings.host, settings.port)
    if not settings.http_workers:
        _serve_all(settings, listener, audit)
        return
    supervisor = Supervisor(
        settings,
        listener,
        partial(_serve_engine, settings, listener, audit),
        partial(_run, settings, listener, delay_s=settings.drain_delay_s),
        grace_s=GRACE_S + math.ceil(settings.drain_delay_s),
    )
    if status := supervisor.run():
        sys.exit(status)


def _serve_engine(settings: Settings, listener: socket.socket, audit: Audit, folder: Path) -> None:
    """The engine's process of several: the whole service, on Unix sockets in `folder`."""
    try:
        _serve_all(settings, listener, audit, folder)
    except MexmaError as error:
        sys.exit(f"mexma-serve: {error}")


def _serve_all(
    settings: Settings, listener: socket.socket, audit: Audit, folder: Path | None = None
) -> None:
    """Load everything and serve it, at `listener` or for HTTP workers at sockets in `folder`."""

    def load(path: Path) -> OnnxEncoder:
        device, threads, engine = settings.device, settings.threads, settings.engine
        return lowered(partial(OnnxEncoder, path, device=device, threads=threads, engine=engine))

    encoder, *further = (load(path) for path in (settings.model, *settings.further_models))
    for loaded in (encoder, *further):
        log.info("%s runs on %s", loaded.manifest.name, loaded.engine)
        if loaded.session.reason:
            log.warning("not on the native engine: %s", loaded.session.reason)
    store, place = _store(settings, encoder.session.threads)
    host, port = listener.getsockname()[:2]
    log.info(
        "serving %s on %s://%s:%s (%s), collections in %s",
        ", ".join(e.manifest.name for e in (encoder, *further)),
        "https" if settings.tls_cert else "http",
        f"[{host}]" if ":" in host else host,
        port,
        settings.device,
        place,
    )
    app = create_app(
        settings,
        encoder=encoder,
        store=store,
        further=further,
        load=load,
        tracing=start_tracing(settings),
        guard=guard_of(settings),
        audit=audit,
        tuning=Tuning(None if settings.milvus_uri else settings.data_dir / "tuning.json"),
        engine_socket=None if folder is None else folder / ENGINE_SOCKET,
    )
    if folder is None:
        _run(settings, listener, app, delay_s=settings.drain_delay_s)
    else:  # from the folder, which is this user's alone, only workers come, and they have gone
        plain: dict[str, Any] = {"ssl_certfile": None, "ssl_keyfile": None}
        listener.close()  # or it would stay open, and answer nobody, when the workers have closed theirs
        socket_there = listen(folder / HTTP_SOCKET)
        _run(settings, socket_there, answering(app), forwarded_allow_ips="*", **plain)


def _run(
    settings: Settings, listener: socket.socket, app: Any, *, delay_s: float = 0, **options: Any
) -> None:
    """Serve `app` at `listener` until told to stop, and `delay_s` longer."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    connections = Connections(
        header_timeout_s=settings.header_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        maximum=room_for_connections(settings.max_connections),
        refuse=getattr(app, "refuse", None),
        unread=getattr(app, "unread", None),
    )
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol(connections),
        ws="none",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
        **(_tls(settings) | options),
    )
    gc.collect()
    gc.freeze()  # what was loaded stays; nobody need look at it again
    gc.set_threshold(COLLECT_EVERY, *ALL_EVERY)
    DrainingServer(config, delay_s=delay_s).run(sockets=[listener])


def _store(settings: Settings, threads: int) -> tuple[Store, str]:
    """The store that the settings choose, and where it is."""
    if settings.milvus_uri:
        from service.store.milvus.store import MilvusStore  # noqa: PLC0415 - brings grpc

        milvus = MilvusStore(
            settings.milvus_uri,
            token=settings.milvus_token.get_secret_value(),
            database=settings.milvus_database,
            timeout_s=settings.milvus_timeout_s,
            index=settings.milvus_index,
        )
        return milvus, f"Milvus at {milvus.place}"
    folder = settings.data_dir.absolute()
    try:
        store = LocalStore(
            settings.data_dir,
            threads=threads,
            index_memory_bytes=settings.index_memory_mb << 20,
            recall_check_every=settings.recall_check_every,
            gpu=_gpu(settings),
        )
    except (OSError, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"MEXMA_DATA_DIR {folder} cannot hold collections: {reason}") from error
    return store, str(folder)


def _gpu(settings: Settings) -> Gpu | None:
    """Where indexes are, None for the CPU. Raises InstallationError where a GPU is asked for and none is
    there."""
    wanted = settings.index_device
    if wanted == "cpu" or (wanted == "auto" and settings.device == "cpu"):
        return None
    try:
        gpu = Gpu.first()
    except InstallationError as error:
        if wanted == "cuda":
            raise InstallationError(f"MEXMA_INDEX_DEVICE=cuda: {error}") from error
        log.warning("collections are searched on the CPU: %s", error)
        return None
    log.info("collections are searched on the GPU")
    return gpu


def _tls(settings: Settings) -> dict[str, Any]:
    """uvicorn's arguments for HTTPS. Raises InstallationError when the files cannot be used."""
    if settings.tls_cert is None and settings.tls_key is None:
        return {}
    if settings.tls_cert is None or settings.tls_key is None:
        raise InstallationError("MEXMA_TLS_CERT and MEXMA_TLS_KEY go together; one of them is set")
    try:
        # The password is given so that an encrypted key is refused instead of asked about.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except OSError as error:  # SSLError is one
        raise InstallationError(
            f"MEXMA_TLS_CERT {settings.tls_cert} and MEXMA_TLS_KEY {settings.tls_key} cannot be "
            f"used: {error.strerror or error}"
        ) from error
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow, so that a taken one is said at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise InstallationError(
            f"cannot listen on {host} port {port}: {error}; MEXMA_HOST and MEXMA_PORT say where"
        ) from error
    return listener


def _settings() -> Settings:
    known = {f"MEXMA_{name.upper()}" for name in Settings.model_fields}
    if unknown := sorted(n for n in os.environ if n.startswith("MEXMA_") and n not in known):
        sys.exit(f"mexma-serve: {unknown[0]} is not a setting; mexma-serve --help lists them")
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        name = "_".join(str(part) for part in problem["loc"]).upper()
        sys.exit(
            f"mexma-serve: setting {name if name.startswith('MEXMA_') else 'MEXMA_' + name}: "
            f"{problem['msg'].removeprefix('Value error, ')}, found {problem['input']!r}"
        )


def _list_settings() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        first_sentence = re.split(r"(?<=[.;]) ", str(field.description))[0].rstrip(";.")
        text = textwrap.fill(first_sentence, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append(f"  MEXMA_{name.upper()}={field.default}\n{text}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
