"""A short run of each build. `make sanitize` goes on for a minute, with another seed each time."""

from __future__ import annotations

import pytest

from tests.sanitize.__main__ import attack, damageable
from tests.sanitize.build import SANITIZERS, build

SAYS = {"address": "AddressSanitizer: heap-buffer-overflow", "thread": "ThreadSanitizer: data race"}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nothing_is_found_but_what_was_planted(sanitizer, tmp_path):
    environment = build(sanitizer, tmp_path / sanitizer)
    arguments = ["--rounds", "1", "--seed", "0", *damageable(tmp_path, sanitizer)]
    done = attack(sanitizer, environment, *arguments, capture=True)
    assert done.returncode == 0, done.stderr.replace("\r", "\n")
    assert "nothing found" in done.stderr
    planted = attack(sanitizer, environment, "--planted", capture=True)
    assert planted.returncode != 0
    assert SAYS[sanitizer] in planted.stderr, planted.stderr
