# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to PostgreSQL that wait a moment while the primary moves.

libpq asks all members once, and fails when none of them accepts writes at that moment: in the second in which a primary
hands over to another one, or when the answer of a busy primary took longer than connect_timeout. A request that needs
a connection then would fail, although it only came too early. So the search is repeated for up to PATIENCE seconds.

When that was in vain, the next requests ask once only, until somebody was let in again: during an outage they must not
hold the threads that pages without a database need. What does not pass by itself, such as a wrong password, is told
at once.

Every engine for PostgreSQL that Django or somebody else offers rests on the one class that is changed here, so the
project keeps its engine. A project's connection pool connects by itself and is as patient as its timeout says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 3.0
PAUSE = 0.05
# What a server or libpq says when asking again is of no use.
LASTING = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "certificate",
    "too many connections",
    "invalid connection option",
)


def will_pass(message: str) -> bool:
    """Whether a failure to connect may be over in a moment."""
    return not any(words in message for words in LASTING)


class Patience:
    """How long this process may wait: PATIENCE, or not at all while nobody has been let in since that was in vain."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Any] = time.sleep) -> None:
        self._clock, self._sleep = clock, sleep
        self._in_vain = threading.Event()

    def connect(self, once: Callable[[], Any], error: type[BaseException]) -> Any:
        """The connection, from a function that tries once."""
        deadline = self._clock() + PATIENCE
        while True:
            try:
                connection = once()
            except error as problem:
                if self._in_vain.is_set() or not will_pass(str(problem)):
                    raise
                if self._clock() >= deadline:
                    self._in_vain.set()
                    raise
            else:
                self._in_vain.clear()
                return connection
            self._sleep(PAUSE)


def be_patient() -> None:
    """Change Django's engine for PostgreSQL in this process, once."""
    from django.db.backends.postgresql.base import Database, DatabaseWrapper

    once = DatabaseWrapper.get_new_connection
    if hasattr(once, "patience"):
        return
    patience = Patience()

    def get_new_connection(self: Any, conn_params: dict[str, Any]) -> Any:
        return patience.connect(lambda: once(self, conn_params), Database.OperationalError)

    get_new_connection.patience = patience  # type: ignore[attr-defined]
    DatabaseWrapper.get_new_connection = get_new_connection
