# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to PostgreSQL that wait a moment while the primary moves.

libpq asks all members once, and fails when none of them accepts writes at that moment: in the second in which a primary
hands over to another one, or when the answer of a busy primary took longer than connect_timeout. A request that needs
a connection then would fail, although it only came too early. So the search is repeated for up to PATIENCE seconds.

When that was in vain, the next requests ask once only, until somebody was let in again: during an outage they must not
hold the threads that pages without a database need. What does not pass by itself, such as a wrong password, is told
at once, unless the password is just being changed (cluster_secrets.py).

Every engine for PostgreSQL that Django or somebody else offers rests on the one class that is changed here, so the
project keeps its engine. A project's connection pool connects by itself and is as patient as its timeout says.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cluster_secrets

# Longer than two searches that each wait for the time-out of a primary too busy to answer (connect_timeout, 2 s).
PATIENCE = 5.0
PAUSE = 0.05
REFUSED = "authentication failed"
# What a server or libpq says when asking again is of no use.
LASTING = (
    REFUSED,
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "certificate",
    "too many connections",
    "invalid connection option",
)


_thread = threading.local()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """In this thread nobody waits: a health check says how it is now, and its caller has less time than PATIENCE."""
    _thread.at_once = True
    try:
        yield
    finally:
        _thread.at_once = False


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
                if self._in_vain.is_set() or getattr(_thread, "at_once", False) or not will_pass(str(problem)):
                    raise
                if self._clock() >= deadline:
                    self._in_vain.set()
                    raise
            else:
                self._in_vain.clear()
                return connection
            self._sleep(PAUSE)


def with_either_password(
    once: Callable[[dict[str, Any]], Any], parameters: dict[str, Any], alias: dict[str, Any]
) -> Any:
    """A connection with the alias's password, or with the one that takes its place, which is remembered then."""
    try:
        return once(parameters)
    except Exception as error:
        other = cluster_secrets.coming("database", parameters.get("password")) if REFUSED in str(error) else None
        if other is None:
            raise
    try:
        connection = once({**parameters, "password": other})
    except Exception as error:
        if REFUSED not in str(error):
            raise
        # A standby that libpq asks on its way to the primary learns the new password a moment after it.
        raise type(error)("the password is being changed, and not all servers accept the same one yet") from error
    alias["PASSWORD"] = other
    return connection


def be_patient() -> None:
    """Change Django's engine for PostgreSQL in this process, once."""
    from django.db.backends.postgresql.base import Database, DatabaseWrapper

    once = DatabaseWrapper.get_new_connection
    if hasattr(once, "patience"):
        return
    patience = Patience()

    def get_new_connection(self: Any, conn_params: dict[str, Any]) -> Any:
        def connect() -> Any:
            return with_either_password(lambda parameters: once(self, parameters), conn_params, self.settings_dict)

        return patience.connect(connect, Database.OperationalError)

    get_new_connection.patience = patience  # type: ignore[attr-defined]
    DatabaseWrapper.get_new_connection = get_new_connection
