# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets that are being changed.

PostgreSQL and Redis learn a new password before this node's processes are started again with it, and nodes get a new
secret key one after the other. Before any of that Flotilla writes the new secrets to a file on every node. A process
that is refused with the password that it was started with looks there and goes on with the other one, and what
another node signed with the new key is believed. So a change of secrets fails no request and logs nobody out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

COMING = Path("/etc/django/coming_secrets.json")
logger = logging.getLogger("cluster.secrets")


def coming(name: str, current: str | None) -> str | None:
    """What replaces, or has just replaced, a secret: `database`, `redis` or `secret_key`. None when nothing does."""
    try:
        secret: str | None = json.loads(COMING.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("Cannot read %s: %s", COMING, error)
        return None
    return secret if secret and secret != current else None


class FallbackKeys(list[str]):
    """SECRET_KEY_FALLBACKS: the former keys, and the one that other nodes may sign with already."""

    def __init__(self, former: list[str], current: str) -> None:
        super().__init__(former)
        self._current = current

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        other = coming("secret_key", self._current)
        if other and other not in super().__iter__():
            yield other
