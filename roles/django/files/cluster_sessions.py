# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions in the database, with copies in Redis that are not believed once they may be out of date.

Django's cached_db writes a session to both. While Redis is away it writes to the database alone, and takes the older
copy for the truth when Redis is back: what somebody put into a cart meanwhile is gone. Here it stands in Redis from
when on copies count, and on which server that was said (TRUSTED). A process whose write did not reach Redis says it
anew as soon as it can; one that finds a server on which nobody has said it yet (after a failover or a restart) does so,
too, whether it noticed the outage or not. Older copies are a miss, so that the session is read from the database.
GRACE_SECONDS more are for processes that find Redis later, and for clocks that differ. A server that can be read but
refuses to be written (with too few replicas, for example) holds copies that others could not replace: before a copy is
read, something is written (PROBE).

While the secret key is changed, Django gives a session of the former key a new identifier and deletes the former one.
Other requests of the same browser are under way with it and would be logged out. Here it goes on for OVERLAP_SECONDS.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import cluster_redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseStore

TRUSTED, PROBE = "cluster_sessions.trusted", "cluster_sessions.probe"
TELL_AGAIN_SECONDS = 0.2
GRACE_SECONDS = 10.0
OVERLAP_SECONDS = 60
# In a session that ends because another took its place: the life it had, as Django's set_expiry() keeps it, or None.
REPLACED, LIFE = "_cluster_replaced", "_session_expiry"


class Copies:
    """The part of a cache that a session store uses; each copy knows when it was written."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._members = cluster_redis.members_of(cache)
        self._missed = 0  # writes that did not reach Redis
        self._told_of = self._to_tell_of()
        self._teller = threading.Thread()

    def get(self, key: str) -> Any:
        if not self._tell() or not self._cache.set(PROBE, 1, settings.SESSION_COOKIE_AGE):
            return None
        return self._believed(self._cache.get_many([key, TRUSTED]), key)

    async def aget(self, key: str) -> Any:
        if not self._tell() or not await self._cache.aset(PROBE, 1, settings.SESSION_COOKIE_AGE):
            return None
        return self._believed(await self._cache.aget_many([key, TRUSTED]), key)

    def set(self, key: str, value: Any, timeout: float | None = None) -> None:
        self._tell()
        if not self._cache.set(key, (time.time(), value), timeout):
            self._miss()

    async def aset(self, key: str, value: Any, timeout: float | None = None) -> None:
        self._tell()
        if not await self._cache.aset(key, (time.time(), value), timeout):
            self._miss()

    def delete(self, key: str) -> None:
        if self._cache.delete(key) is None:  # False: there was none
            self._miss()

    async def adelete(self, key: str) -> None:
        if await self._cache.adelete(key) is None:
            self._miss()

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def _believed(self, found: dict[str, Any] | None, key: str) -> Any:
        since, server = (found or {}).get(TRUSTED) or (0.0, None)
        if server != self._members.server:
            self._miss()
            return None
        written, value = (found or {}).get(key) or (0.0, None)
        return value if written >= since + GRACE_SECONDS else None

    def _to_tell_of(self) -> tuple[int, int]:
        return cluster_redis.Members.outages, self._missed

    def _miss(self) -> None:
        """Others may read an older copy: they are told at once or, whether this process has requests or not, soon."""
        self._missed += 1
        if not self._tell() and not self._teller.is_alive():
            self._teller = threading.Thread(target=self._tell_until_told, name="cluster_sessions", daemon=True)
            self._teller.start()

    def _tell_until_told(self) -> None:
        pause = threading.Event()
        while not self._tell():
            pause.wait(TELL_AGAIN_SECONDS)

    def _tell(self) -> bool:
        """After an outage: copies count from now on. Whether nothing is left to tell; if not, the next call does."""
        of, server = self._to_tell_of(), self._members.server
        if of == self._told_of:
            return True
        if not self._cache.set(TRUSTED, (time.time(), server), settings.SESSION_COOKIE_AGE):
            return False
        if server != self._members.server:  # found by this very call
            return False
        self._told_of = of
        return True


_copies: dict[str, Copies] = {}


class SessionStore(CachedDatabaseStore):
    """SESSION_ENGINE = "cluster_sessions"."""

    # Copies have another form than those of cached_db.
    cache_key_prefix = "cluster_sessions."

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        # One for all sessions of the process: it is the process that knows of outages.
        self._cache = _copies.setdefault(settings.SESSION_CACHE_ALIAS, Copies(self._cache))

    def cycle_key(self) -> None:
        """Take another identifier."""
        former_key = self.session_key
        if not former_key or not list(settings.SECRET_KEY_FALLBACKS):
            super().cycle_key()
            return
        data = dict(self._session)
        if REPLACED in data:
            life = data.pop(REPLACED)
            data.pop(LIFE, None)
            data.update({} if life is None else {LIFE: life})
        self.create()
        self._session_cache = data
        self.modified = True
        former = type(self)(former_key)
        former._session_cache = {**data, REPLACED: data.get(LIFE)}
        former.set_expiry(OVERLAP_SECONDS)
        with contextlib.suppress(UpdateError):  # its user has logged out meanwhile
            former.save()

    async def acycle_key(self) -> None:
        await sync_to_async(self.cycle_key)()
