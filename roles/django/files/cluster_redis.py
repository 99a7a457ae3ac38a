# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis connections that find the master themselves.

Given all members of a replicated Redis, a connection goes to the one that says it is the master, as libpq does with
target_session_attrs=read-write. It looks again whenever it has to reconnect and when the server it talks to turns out
to have become a replica. Nothing has to be told to Django after a failover.

When no master is found, the search is not repeated for RETRY_AFTER seconds, and for twice as long each time after,
up to RETRY_AFTER_MOST: during an outage requests cost milliseconds rather than the sum of all timeouts. django-redis
with IGNORE_EXCEPTIONS turns the error into a miss.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

RETRY_AFTER = 1.0
RETRY_AFTER_MOST = 8.0
Member = tuple[str, int]
logger = logging.getLogger("cluster.redis")


class Members:
    """What all connections of a pool know together: the members, who was master last, and whether nobody was."""

    def __init__(self, members: tuple[Member, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self.members = members
        self._clock = clock
        self._master: Member | None = None
        self._quiet_until = 0.0
        self._pause = RETRY_AFTER
        self._was_lost = False
        self._lock = threading.Lock()

    def candidates(self) -> list[Member]:
        """The members, the last known master first."""
        master = self._master
        return sorted(self.members, key=lambda member: member != master)

    def found(self, member: Member) -> None:
        with self._lock:
            if self._master not in (None, member) or self._was_lost:
                logger.warning("Redis master is %s:%s", *member)
            self._was_lost = False
            self._master = member
            self._quiet_until = 0.0
            self._pause = RETRY_AFTER

    def lost(self, reason: str) -> None:
        with self._lock:
            if not self._was_lost:
                logger.error("No usable Redis master: %s", reason)
            self._was_lost = True
            if not self.is_quiet():
                self._quiet_until = self._clock() + self._pause
                self._pause = min(2 * self._pause, RETRY_AFTER_MOST)

    def is_quiet(self) -> bool:
        return self._clock() < self._quiet_until


def _role_of(reply: Any) -> str:
    """The role in a reply to ROLE (a list that begins with it) or to HELLO (a map, or a list of names and values)."""
    if isinstance(reply, dict):
        items = {_word(key): value for key, value in reply.items()}
        return _word(items.get("role", ""))
    if isinstance(reply, (list, tuple)) and reply:
        words = [_word(item) for item in reply]
        if words[0] == "server":
            return words[words.index("role") + 1] if "role" in words[::2] else ""
        return words[0]
    return ""


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class MasterConnection(Connection):
    """A connection to whichever member is the master."""

    def __init__(self, *, shared: Members, **kwargs: Any) -> None:
        self._shared = shared
        self._searching = False
        super().__init__(**kwargs)

    def connect(self) -> None:
        if self._shared.is_quiet():
            # An open connection to a server that does not answer must not be waited for again either.
            self.disconnect()
            raise RedisConnectionError("no usable Redis master was found a moment ago")
        if self._sock is None:
            self._search(super().connect)

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Called by newer redis-py, both by connect() and when a command finds its connection closed."""
        connect = super().connect_check_health
        if self._searching:
            connect(*args, **kwargs)
        elif self._sock is None:
            self._search(lambda: connect(*args, **kwargs))

    def _search(self, connect: Callable[[], Any]) -> None:
        problems = []
        for member in self._shared.candidates():
            self.host, self.port = member
            self._searching = True
            try:
                connect()
                role = self._role()
            except (RedisError, OSError) as error:
                self.disconnect()
                problems.append(f"{member[0]}:{member[1]}: {error}")
                continue
            finally:
                self._searching = False
            if role == "master":
                self._shared.found(member)
                return
            self.disconnect()
            problems.append(f"{member[0]}:{member[1]} is {role or 'of unknown role'}")
        reason = "; ".join(problems)
        self._shared.lost(reason)
        raise RedisConnectionError(f"no usable Redis master: {reason}")

    def _role(self) -> str:
        try:
            self.send_command("ROLE", check_health=False)
            return _role_of(self.read_response())
        except NoPermissionError:
            # A user of few rights may not ask ROLE; HELLO tells it too and needs none.
            self.send_command("HELLO", check_health=False)
            return _role_of(self.read_response())

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except ReadOnlyError as error:
            self.disconnect()
            raise RedisConnectionError("the former Redis master has become a replica") from error
        except (RedisTimeoutError, TimeoutError) as error:
            if not self._searching:
                self._shared.lost(f"{self.host}:{self.port} does not answer: {error}")
            raise


class MasterConnectionPool(ConnectionPool):
    """A pool of MasterConnection; takes `members`, a sequence of (host, port)."""

    def __init__(self, *args: Any, members: tuple[Member, ...] = (), **kwargs: Any) -> None:
        kwargs.pop("connection_class", None)
        kwargs.setdefault("shared", Members(tuple(members)))
        # A command that finds its connection dead is tried once more, on whoever is master now. A timeout is not.
        kwargs.setdefault("retry", Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)))
        super().__init__(MasterConnection, *args, **kwargs)
