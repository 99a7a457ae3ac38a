# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions in the database, with copies in Redis that are not believed once they may be out of date.

Django's cached_db writes a session to both. While Redis is away it writes to the database alone, and takes the older
copy for the truth when Redis is back: what somebody put into a cart meanwhile is gone. Here it stands in Redis from
when on copies count, and on which server that was said (TRUSTED). A process that had to do without Redis says it anew
as soon as it can; one that finds a server on which nobody has said it yet (after a failover or a restart) does so, too,
whether it noticed the outage or not. Older copies are a miss, so that the session is read from the database.
GRACE_SECONDS more are for processes that find Redis later, and for clocks that differ.

While the secret key is changed, Django gives a session of the former key a new identifier and deletes the former one.
Other requests of the same browser are under way with it and would be logged out. Here it goes on for OVERLAP_SECONDS.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import cluster_redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.cached_db import SessionStore as CachedDatabaseStore

TRUSTED = "cluster_sessions.trusted"
GRACE_SECONDS = 10.0
OVERLAP_SECONDS = 60
# In a session that ends because another took its place: the life it had, as Django's set_expiry() keeps it, or None.
REPLACED, LIFE = "_cluster_replaced", "_session_expiry"


class Copies:
    """The part of a cache that a session store uses; each copy knows when it was written."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._members = cluster_redis.members_of(cache)
        self._outages = cluster_redis.Members.outages
        self._to_tell = False

    def get(self, key: str) -> Any:
        return self._believed(self._cache.get_many([key, TRUSTED]), key) if self._tell() else None

    async def aget(self, key: str) -> Any:
        return self._believed(await self._cache.aget_many([key, TRUSTED]), key) if self._tell() else None

    def set(self, key: str, value: Any, timeout: float | None = None) -> None:
        self._tell()
        self._to_tell |= not self._cache.set(key, (time.time(), value), timeout)

    async def aset(self, key: str, value: Any, timeout: float | None = None) -> None:
        self._tell()
        self._to_tell |= not await self._cache.aset(key, (time.time(), value), timeout)

    def delete(self, key: str) -> None:
        self._cache.delete(key)

    async def adelete(self, key: str) -> None:
        await self._cache.adelete(key)

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def _believed(self, found: dict[str, Any] | None, key: str) -> Any:
        since, server = (found or {}).get(TRUSTED) or (0.0, None)
        if server != self._members.server:
            self._to_tell = True
            self._tell()
            return None
        written, value = (found or {}).get(key) or (0.0, None)
        return value if written >= since + GRACE_SECONDS else None

    def _tell(self) -> bool:
        """After an outage: copies count from now on. Whether nothing is left to tell; if not, the next call does."""
        outages = cluster_redis.Members.outages
        if outages == self._outages and not self._to_tell:
            return True
        told = self._cache.set(TRUSTED, (time.time(), self._members.server), settings.SESSION_COOKIE_AGE)
        if told:
            self._outages, self._to_tell = outages, False
        return bool(told)


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
