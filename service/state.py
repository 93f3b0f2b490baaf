"""What one app is made of; handed to the routers, never global."""

from __future__ import annotations

from dataclasses import dataclass

from service.canaries import Canaries
from service.engine.encoders import Encoders
from service.engine.watchdog import Watchdogs
from service.languages import LanguageDetector
from service.metrics import Metrics
from service.migrator import Migrator
from service.reloader import Reloader
from service.settings import Settings
from service.store.protocol import Store


@dataclass
class State:
    """migrator: where the store can move collections.

    starting: why the app is not ready yet, in a word for machines; None once it is."""

    settings: Settings
    encoders: Encoders
    store: Store
    detector: LanguageDetector
    metrics: Metrics
    canaries: Canaries
    watchdogs: Watchdogs
    reloader: Reloader
    migrator: Migrator | None = None
    starting: str | None = None
