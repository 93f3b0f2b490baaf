"""What one app is made of; handed to the routers, never global."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from service.encoders import Encoders
from service.languages import LanguageDetector
from service.metrics import Metrics
from service.settings import Settings
from service.store.protocol import Store


@dataclass
class State:
    """starting: why the app is not ready yet, in a word for machines; None once it is."""

    settings: Settings
    encoders: Encoders
    store: Store
    detector: LanguageDetector
    metrics: Metrics
    starting: str | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
