"""`mexma-keys`: make, list and revoke API keys in a file that the service reads while it runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mexma.errors import KeyFileError
from service.security.keys import NAME, ROLES, Key, new_key, read_keys, write_keys

UNLIMITED = "none"
"""Asks for no quota; None asks for nothing."""


def main(arguments: list[str] | None = None) -> None:
    """Exits with 1 and one sentence when it cannot."""
    parser = argparse.ArgumentParser(
        prog="mexma-keys",
        description="API keys in a file, for MEXMA_API_KEYS_FILE. The file holds hashes; a key is "
        "shown once, when it is made. To rotate one, create another of the same name, hand it "
        "out, and revoke the old one; the service notices within a second.",
    )
    parser.add_argument("file", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it")
    create.add_argument("name", help="the client; its keys share a quota")
    create.add_argument("--role", choices=ROLES, default="read")
    create.add_argument(
        "--tokens-per-minute",
        type=_quota,
        help="the quota, or `none`, of all keys of that name; without it the name keeps what it has, "
        "and a new one has none",
    )
    create.add_argument(
        "--expires", type=_date, help="a day, 2027-01-31: the key ends as it begins, in UTC"
    )
    commands.add_parser("list", help="the keys, without what is secret")
    revoke = commands.add_parser("revoke", help="remove a key")
    revoke.add_argument("id")
    chosen = parser.parse_args(arguments)
    try:
        {"create": _create, "list": _list, "revoke": _revoke}[chosen.command](chosen)
    except (KeyFileError, OSError) as error:
        sys.exit(f"mexma-keys: {error}")


def _date(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)


def _quota(text: str) -> int | str:
    """Tokens a minute, or UNLIMITED."""
    return UNLIMITED if text == UNLIMITED else int(text)


def _create(chosen: argparse.Namespace) -> None:
    if not NAME.fullmatch(chosen.name):
        raise KeyFileError(f"a name is 1 to 64 of A-Z, a-z, 0-9 and _.@-, got {chosen.name!r}")
    if chosen.tokens_per_minute not in (None, UNLIMITED) and chosen.tokens_per_minute < 1:
        raise KeyFileError(f"tokens per minute must be above 0, got {chosen.tokens_per_minute}")
    if chosen.expires is not None and chosen.expires <= (now := datetime.now(UTC)):
        raise KeyFileError(
            f"--expires {chosen.expires:%Y-%m-%d} has begun: the key would have expired already; "
            f"expected a day after today ({now:%Y-%m-%d}, UTC)"
        )
    keys = read_keys(chosen.file) if chosen.file.exists() else {}
    quota, others = _shared(chosen, list(keys.values()))
    given, key = new_key(chosen.name, chosen.role, tokens_per_minute=quota, expires=chosen.expires)
    write_keys(chosen.file, [*others, key])
    print(given)


def _shared(chosen: argparse.Namespace, keys: list[Key]) -> tuple[int | None, list[Key]]:
    """The quota of all keys of the chosen name, and the keys there are, with it. What came of it is said
    on standard error: a script that reads the key reads nothing else."""
    had = [key.tokens_per_minute for key in keys if key.name == chosen.name]
    if chosen.tokens_per_minute is None:
        # Files of former versions may have several quotas of a name: the strictest was meant at least once.
        quota = min((q for q in had if q is not None), default=None)
    else:
        quota = None if chosen.tokens_per_minute == UNLIMITED else chosen.tokens_per_minute
    says = "no quota" if quota is None else f"a quota of {quota} tokens a minute"
    if changed := sum(q != quota for q in had):
        print(f"all keys of {chosen.name} have {says} now, {changed} had not", file=sys.stderr)
    elif quota is not None and had:
        print(f"{chosen.name} has {says}, and so has the new key", file=sys.stderr)
    return quota, [
        replace(key, tokens_per_minute=quota) if key.name == chosen.name else key for key in keys
    ]


def _list(chosen: argparse.Namespace) -> None:
    for key in read_keys(chosen.file).values():
        expires = datetime.fromtimestamp(key.expires, UTC).date() if key.expires else "never"
        quota = key.tokens_per_minute or "none"
        print(f"{key.id}  {key.role:8}{key.name}  quota {quota}  expires {expires}")


def _revoke(chosen: argparse.Namespace) -> None:
    keys = read_keys(chosen.file)
    if keys.pop(chosen.id, None) is None:
        raise KeyFileError(f"{chosen.file} has no key {chosen.id}; list shows them")
    write_keys(chosen.file, list(keys.values()))


if __name__ == "__main__":
    main()
