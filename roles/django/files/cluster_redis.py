# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis connections that find the master themselves.

A connection goes to the member that the Sentinels name, provided that it says itself that it is the master. Where no
Sentinel answers, it goes to the one that says so, as libpq does with target_session_attrs=read-write; the Sentinels
are asked first because a former master that comes back says so, too, for some ten seconds. A connection looks again
whenever it has to reconnect and when the server it talks to turns out to have become a replica. Nothing has to be told
to Django after a failover. (redis-py's own Sentinel connections try the dead address again within one call.)

A server that refuses the password gets the one that is about to replace it (cluster_secrets.py).

With an authority (`ca_file`) Redis and Sentinel are spoken to over TLS, and have to prove their address by a
certificate of it. Before Redis learns TLS, Flotilla writes the authority to a file on every node (COMING_CA): a process
that was started without TLS and whose new connection is closed goes on with it. The other way never happens.

When no master is found, the search is not repeated for RETRY_AFTER seconds: during an outage most requests cost
milliseconds rather than the sum of all timeouts. django-redis with IGNORE_EXCEPTIONS turns the error into a miss. A
search ends after SEARCH_SECONDS, or with the attempt that it is at then.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_secrets
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

RETRY_AFTER = 1.0
SEARCH_SECONDS = 1.0
SENTINEL_SECONDS = 0.3
COMING_CA = Path("/etc/django/redis-ca.pem")
WATCHED = "flotilla"  # the name under which the Sentinels watch the master
Member = tuple[str, int]
logger = logging.getLogger("cluster.redis")


class Members:
    """What all connections of a pool know together: the members, who was master last, and whether nobody was."""

    outages = 0  # how often this process was without a master
    server = ""  # the run_id of the master that was found last: another one after a failover, and after a restart

    def __init__(
        self,
        members: tuple[Member, ...],
        sentinels: tuple[Member, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = members
        self._sentinels = list(sentinels)
        self._clock = clock
        self._master: Member | None = None
        self._quiet_until = 0.0
        self._was_lost = False
        self._lock = threading.Lock()

    def candidates(self, ask: Callable[[Member], Member | None]) -> Iterator[Member]:
        """Whom to try: the one that a Sentinel names, or else all members, the last known master first."""
        give_up_at = self._clock() + SEARCH_SECONDS
        for sentinel in tuple(self._sentinels):
            if self._clock() > give_up_at:
                return
            named = ask(sentinel)
            if named:
                with self._lock:  # the next search begins with one that answers
                    self._sentinels.sort(key=lambda other: other != sentinel)
                yield named
                return
        master = self._master
        for member in sorted(self.members, key=lambda member: member != master):
            if self._clock() > give_up_at:
                return
            yield member

    def found(self, member: Member, server: str) -> None:
        with self._lock:
            self.server = server
            if self._master not in (None, member) or self._was_lost:
                logger.warning("Redis master is %s:%s", *member)
            self._was_lost = False
            self._master = member
            self._quiet_until = 0.0

    def lost(self, reason: str) -> None:
        with self._lock:
            if not self._was_lost:
                Members.outages += 1
                logger.error("No usable Redis master: %s", reason)
            self._was_lost = True
            if not self.is_quiet():
                self._quiet_until = self._clock() + RETRY_AFTER

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


def _run_id_of(reply: Any) -> str:
    """What Redis calls itself since it was started, in a reply to INFO."""
    found = re.search(r"^run_id:(\w+)", _word(reply), re.MULTILINE)
    return found[1] if found else ""


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class VerifiedConnection(Connection):
    """A connection over TLS to a server that proves its address, where there is an authority; else a plain one."""

    def __init__(self, *, ca_file: str = "", **kwargs: Any) -> None:
        self._ca_file = ca_file
        super().__init__(**kwargs)

    def _connect(self) -> Any:
        plain = super()._connect()
        if not self._ca_file:
            return plain
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _as_it_comes(self, connect: Callable[[], Any]) -> None:
        """Plain for a process that was started so, unless the server has learned TLS meanwhile."""
        try:
            connect()
        except AuthenticationError:
            raise
        except RedisConnectionError:
            if self._ca_file or not COMING_CA.exists():
                raise
            self.disconnect()
            self._ca_file = str(COMING_CA)
            try:
                connect()
            except BaseException:
                self._ca_file = ""
                raise


class MasterConnection(VerifiedConnection):
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
        for member in self._shared.candidates(self._ask_sentinel):
            self.host, self.port = member
            self._searching = True
            try:
                self._as_it_comes(lambda: self._with_either_password(connect))
                role = self._role()
                server = self._run_id() if role == "master" else ""
            except (RedisError, OSError) as error:
                self.disconnect()
                problems.append(f"{member[0]}:{member[1]}: {error}")
                continue
            finally:
                self._searching = False
            if role == "master":
                self._shared.found(member, server)
                return
            self.disconnect()
            problems.append(f"{member[0]}:{member[1]} is {role or 'of unknown role'}")
        reason = "; ".join(problems) or "nobody answered in time"
        self._shared.lost(reason)
        raise RedisConnectionError(f"no usable Redis master: {reason}")

    def _with_either_password(self, connect: Callable[[], Any]) -> None:
        try:
            connect()
        except AuthenticationError:
            other = cluster_secrets.coming("redis", self.password)
            if other is None:
                raise
            self.disconnect()
            self.password = other
            connect()

    def _ask_sentinel(self, sentinel: Member) -> Member | None:
        """Whom one Sentinel takes for the master, nobody when it does not answer or does not know."""
        connection = VerifiedConnection(
            ca_file=self._ca_file,
            host=sentinel[0],
            port=sentinel[1],
            username=self.username,
            password=self.password,
            socket_connect_timeout=SENTINEL_SECONDS,
            socket_timeout=SENTINEL_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            connection._as_it_comes(connection.connect)
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", WATCHED, check_health=False)
            reply = connection.read_response()
            return (_word(reply[0]), int(reply[1])) if reply else None
        except (RedisError, OSError):
            return None
        finally:
            connection.disconnect()

    def _role(self) -> str:
        try:
            self.send_command("ROLE", check_health=False)
            return _role_of(self.read_response())
        except NoPermissionError:
            # A user of few rights may not ask ROLE; HELLO tells it too and needs none.
            self.send_command("HELLO", check_health=False)
            return _role_of(self.read_response())

    def _run_id(self) -> str:
        try:
            self.send_command("INFO", "server", check_health=False)
            return _run_id_of(self.read_response())
        except NoPermissionError:
            return f"{self.host}:{self.port}"

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
    """A pool of MasterConnection; takes `members` and `sentinels`, sequences of (host, port), and `ca_file`."""

    def __init__(
        self, *args: Any, members: tuple[Member, ...] = (), sentinels: tuple[Member, ...] = (), **kwargs: Any
    ) -> None:
        kwargs.pop("connection_class", None)
        kwargs.setdefault("shared", Members(tuple(members), tuple(sentinels)))
        # A command that finds its connection dead is tried once more, on whoever is master now. A timeout is not.
        kwargs.setdefault("retry", Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)))
        super().__init__(MasterConnection, *args, **kwargs)


def members_of(cache: Any) -> Members:
    """What the connections of a cache of django-redis know together."""
    members: Members = cache.client.get_client().connection_pool.connection_kwargs["shared"]
    return members
