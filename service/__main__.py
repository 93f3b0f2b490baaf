"""`mexma-serve`: load the model, open the store, listen."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

import uvicorn
from pydantic import ValidationError

from mexma import __version__
from mexma.encoder import OnnxEncoder
from mexma.errors import MexmaError
from mexma.installation import check_installation
from service.app import create_app
from service.settings import Settings
from service.store.local import LocalStore

log = logging.getLogger("mexma")

# Requests under way when SIGTERM comes have this long to finish.
GRACE_S = 30


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Exits with 1 and one sentence when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="mexma-serve",
        description=__doc__,
        epilog="Settings are environment variables; each with its default:\n\n" + _list_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mexma {__version__}")
    parser.parse_args(arguments)
    # uvicorn finishes what it accepted and then raises the signal again for whoever had it
    # before: that is us, and an orderly end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(_settings())
    except (MexmaError, OSError) as error:
        sys.exit(f"mexma-serve: {error}")


def serve(settings: Settings) -> None:
    """Build the app from `settings` and run it. Raises MexmaError when it cannot start."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for package, distribution in check_installation().items():
        log.debug("%s is provided by %s", package, distribution)
    # The tokenizer's own threads would compete with the engine's: texts of one request are
    # tokenised by one thread, requests by two.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = OnnxEncoder(settings.model, device=settings.device, threads=settings.threads)
    store = LocalStore(settings.data_dir, threads=encoder.session.threads)
    log.info(
        "serving %s (%s) on http://%s:%s, collections in %s",
        encoder.manifest.name,
        settings.device,
        settings.host,
        settings.port,
        settings.data_dir.resolve(),
    )
    uvicorn.run(
        create_app(settings, encoder=encoder, store=store),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
    )


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
            f"{problem['msg']}, found {problem['input']!r}"
        )


def _list_settings() -> str:
    return "\n".join(
        f"  MEXMA_{name.upper()}={field.default}" for name, field in Settings.model_fields.items()
    )


if __name__ == "__main__":
    main()
