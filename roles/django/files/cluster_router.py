# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads from standbys, by choice (django_replica_router).

A standby lags behind, so a read goes there only where nobody can notice: not inside a transaction, not after a write
in the same request or thread, not for sessions, and not in the requests of a client that wrote during the last
PIN_SECONDS (a cookie set by cluster_wsgi remembers that). What other routers of the project decide comes first.
SQL sent through connection.cursor() goes to the default database as ever, and is not seen as a write here.
"""

from __future__ import annotations

import threading
from typing import Any

PIN_SECONDS = 5
PIN_COOKIE = "cluster_pin"
_DEFAULT = "default"
_REPLICA = "replica"
_OURS = (_DEFAULT, _REPLICA)
_ALWAYS_DEFAULT = frozenset({"sessions"})


class _State(threading.local):
    pinned = False
    wrote = False


state = _State()


def begin_request(pinned: bool) -> None:
    """A new request starts in this thread; `pinned`: its client wrote a moment ago."""
    state.pinned = pinned
    state.wrote = False


def has_written() -> bool:
    return state.wrote


def _belongs_elsewhere(hints: dict[str, Any]) -> bool:
    """Whether the object at hand came from a database of the project's own."""
    instance = hints.get("instance")
    alias = getattr(getattr(instance, "_state", None), "db", None)
    return alias is not None and alias not in _OURS


class ReplicaRouter:
    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        from django.db import connections

        if _belongs_elsewhere(hints):
            return None
        if state.pinned or state.wrote or model._meta.app_label in _ALWAYS_DEFAULT:
            return _DEFAULT
        default = connections[_DEFAULT]
        # In a transaction (atomic, or autocommit switched off) reads must see its own writes.
        if default.in_atomic_block or (default.connection is not None and not default.autocommit):
            return _DEFAULT
        return _REPLICA

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        if _belongs_elsewhere(hints):
            return None
        state.wrote = True
        # Never None: Django would then write to the database the object was read from, the replica.
        return _DEFAULT

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        if obj1._state.db in _OURS and obj2._state.db in _OURS:
            return True
        return None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if db == _REPLICA else None
