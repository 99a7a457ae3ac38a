# SPDX-License-Identifier: GPL-3.0-or-later
"""The generated settings and the replica router under every supported Django, each in an environment of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy_process import free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "roles" / "django" / "files"
UV = str(Path(sys.executable).with_name("uv"))
ROUTER = """
import django
django.setup()
import cluster_redis, cluster_router as c
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connections
from django.core.cache import caches
r = c.ReplicaRouter()
default = connections["default"]
c.begin_request(False)
assert r.db_for_read(User) == "replica"
assert r.db_for_read(Session) == "default", "a login would not be seen"
default.in_atomic_block = True
assert r.db_for_read(User) == "default", "a transaction would not see its own writes"
default.in_atomic_block = False
user = User()
user._state.db = "replica"
assert r.db_for_write(User, instance=user) == "default", "what was read from a standby is written to the primary"
assert r.db_for_read(User) == "default", "pinned after a write"
c.begin_request(False)
assert r.db_for_read(User) == "replica"
c.begin_request(True)
assert r.db_for_read(User) == "default", "pinned by the cookie"
user._state.db = "legacy"
assert r.db_for_read(User, instance=user) is None, "the project's own databases are none of our business"
assert r.allow_migrate("replica", "auth") is False
assert caches["sessions"].get("anything") is None, "nobody listens: a miss, not an error"

A, B, S, T = ("a", 1), ("b", 1), ("s", 2), ("t", 2)
members = cluster_redis.Members((A, B), (S, T))
assert list(members.candidates({T: B}.get)) == [B], "whom a Sentinel names, and nobody else"
asked = []
assert list(members.candidates(lambda sentinel: asked.append(sentinel) or A)) == [A]
assert asked == [T], "the one that answered last is asked first"
assert list(members.candidates(lambda sentinel: None)) == [A, B], "no Sentinel answers: the members"
now = [0.0]
def slow(sentinel):
    now[0] += 0.6
members = cluster_redis.Members((A, B), (S, T), clock=lambda: now[0])
assert list(members.candidates(slow)) == [], "one search does not wait for all time-outs"
print("OK", django.VERSION)
"""

PATIENCE = """
import threading, time
import django
django.setup()
from django.db import OperationalError, connections
from django.contrib.auth.models import User
begun = time.monotonic()
try:
    User.objects.count()
except OperationalError as error:
    waited = time.monotonic() - begun
    assert 4.5 < waited < 10, waited
begun = time.monotonic()
try:
    User.objects.count()
except OperationalError as error:
    assert time.monotonic() - begun < 1, "waits again although it was in vain"
    print("OK", django.VERSION)
"""

SESSIONS = """
import asyncio
import django
import cluster_settings
cluster_settings.DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "sessions.sqlite3"}}
django.setup()
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
import cluster_redis, cluster_sessions

class Redis(LocMemCache):
    # Like django-redis: it says whether it wrote, and an outage is a miss.
    away = False
    def set(self, *args, **kwargs):
        return not self.away and super().set(*args, **kwargs) is None
    async def aset(self, *args, **kwargs):
        return self.set(*args, **kwargs)
    def get_many(self, *args, **kwargs):
        return {} if self.away else super().get_many(*args, **kwargs)

assert settings.SESSION_ENGINE == "cluster_sessions"
call_command("migrate", verbosity=0)
caches["sessions"] = redis = Redis("one", {})
members = cluster_redis.Members((("a", 1),))
members.server = "a"
cluster_redis.members_of = lambda cache: members
now = [1000.0]
class Clock:
    time = staticmethod(lambda: now[0])
cluster_sessions.time = Clock
Session = cluster_sessions.SessionStore

def write(key, value):
    session = Session(key)
    session["cart"] = value
    session.save()
    return session.session_key

def copy(key):  # what is believed
    return Session()._cache.get(Session.cache_key_prefix + key)

assert copy("none") is None, "nobody has said on this server that copies count"
now[0] += cluster_sessions.GRACE_SECONDS
key = write(None, "empty")
other = write(None, "old")
assert copy(key) == {"cart": "empty"}
redis.away = True
now[0] += 1
write(key, "full")
redis.away = False
now[0] += 1
assert copy(other) is None, "whoever missed a write distrusts all copies"
assert Session(key)["cart"] == "full", "not the copy from before the outage"
now[0] += cluster_sessions.GRACE_SECONDS
assert copy(key) is None, "written within the grace period"
assert Session(key)["cart"] == "full"
assert copy(key) == {"cart": "full"}, "copies count again"

cluster_sessions._copies.clear()  # another process, which learns it from Redis
assert copy(other) is None
assert copy(key) == {"cart": "full"}
members.lost("gone")
assert copy(key) is None, "an outage that this process had itself"

now[0] += 2 * cluster_sessions.GRACE_SECONDS
write(key, "of the former master")
assert copy(key) == {"cart": "of the former master"}
members.server = "b"
assert copy(key) is None, "another master, before anybody has told of an outage"
assert copy(other) is None
now[0] += cluster_sessions.GRACE_SECONDS
write(key, "full")
assert copy(key) == {"cart": "full"}

if hasattr(Session, "aload"):
    now[0] += 2 * cluster_sessions.GRACE_SECONDS
    async def asynchronous():
        session = Session(key)
        assert await session.aget("cart") == "full"
        await session.aset("cart", "paid")
        await session.asave()
    asyncio.run(asynchronous())
    assert copy(key) == {"cart": "paid"}
    assert Session(key)["cart"] == "paid"
Session(key).delete()
assert copy(key) is None
assert Session(key).load() == {}
print("OK", django.VERSION)
"""

FAILOVER = """
import os
import time
import django
import cluster_settings
cluster_settings.DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "failover.sqlite3"}}
django.setup()
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.core.management import call_command
import cluster_redis, cluster_sessions, redis

call_command("migrate", verbosity=0)
port = int(os.environ["CLUSTER_REDIS_PORT"])
master, standby = (redis.Redis(host, port) for host in os.environ["CLUSTER_REDIS_HOSTS"].split(","))
standby.replicaof("127.0.0.1", port)
now = [1000.0]
class Clock:
    time = staticmethod(lambda: now[0])
cluster_sessions.time = Clock
Session = cluster_sessions.SessionStore

def write(store, value):
    store["cart"] = value
    store.save()
    return store.session_key

assert Session("none").load() == {}
now[0] += cluster_sessions.GRACE_SECONDS
key = write(Session(), "empty")
assert Session()._cache.get(Session.cache_key_prefix + key) == {"cart": "empty"}
assert master.wait(1, 10000) == 1
# This process does nothing while the master is away; another one has a request, and can write to the database only.
write(DatabaseStore(key), "full")
master.shutdown(nosave=True)
standby.replicaof("NO", "ONE")
assert Session(key)["cart"] == "full", "the copy that the next master has is older than the database"
assert cluster_redis.Members.outages == 0, "this process noticed an outage: nothing is shown here"
now[0] += cluster_sessions.GRACE_SECONDS
assert Session(key)["cart"] == "full"
copy = Session.cache_key_prefix + key
assert Session()._cache.get(copy) == {"cart": "full"}, "copies count again"

# A master that lost its replicas: it can be read, and refuses what is written.
standby.config_set("min-replicas-to-write", 1)
write(Session(key), "paid")
assert Session(key)["cart"] == "paid"
cluster_sessions._copies.clear()  # another process, which has missed nothing itself
assert Session(key)["cart"] == "paid", "older than the database, and nobody can say so"
standby.config_set("min-replicas-to-write", 0)
time.sleep(2)  # no request meanwhile: the process whose write was refused says so by itself
now[0] += 1
cluster_sessions._copies.clear()
assert Session()._cache.get(copy) is None
assert Session(key)["cart"] == "paid"
now[0] += 2 * cluster_sessions.GRACE_SECONDS
write(Session(key), "sent")
assert Session()._cache.get(copy) == {"cart": "sent"}
standby.config_set("min-replicas-to-write", 1)
Session(key).delete()
standby.config_set("min-replicas-to-write", 0)
time.sleep(2)
cluster_sessions._copies.clear()
assert Session(key).load() == {}, "who has logged out stays so"
print("OK", django.VERSION)
"""

KEYS = """
import json
from datetime import timedelta
from pathlib import Path
import django
import cluster_settings
cluster_settings.DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "keys.sqlite3"}}
django.setup()
from django.conf import settings
from django.contrib import auth
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core import signing
from django.core.management import call_command
from django.http import HttpRequest
from django.test import override_settings
from django.utils import timezone
import cluster_secrets, cluster_sessions

call_command("migrate", verbosity=0)
cluster_secrets.COMING = Path("coming.json")

def node(key, *former):
    return override_settings(SECRET_KEY=key, SECRET_KEY_FALLBACKS=cluster_secrets.FallbackKeys(list(former), key))

def visit(key):  # whom a node takes the bearer of the session for, and the session that he is given
    request = HttpRequest()
    request.session = cluster_sessions.SessionStore(key)
    user = auth.get_user(request)
    if request.session.modified:
        request.session.save()
    return user.username, request.session.session_key

request = HttpRequest()
request.session = cluster_sessions.SessionStore()
cluster_secrets.COMING.write_text(json.dumps({"secret_key": "old"}))
with node("old"):
    user = User.objects.create_user("anna")
    auth.login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session["cart"] = "full"
    request.session.set_expiry(1000)
    request.session.save()
    first = request.session.session_key
    assert visit(first) == ("anna", first), "nothing is changed: the same session"
    assert Session.objects.count() == 1

cluster_secrets.COMING.write_text(json.dumps({"secret_key": "new"}))
with node("new", "old"):
    name, second = visit(first)
    assert name == "anna" and second != first
    signed = signing.dumps("by the new key")
    # Two requests of one browser at once: the other has the former cookie.
    name, third = visit(first)
    assert name == "anna" and third not in (first, second)
with node("old"):
    assert signing.loads(signed) == "by the new key", "a node that has not been started again"
    for key in (second, third):
        name, again = visit(key)
        assert name == "anna" and again != key
with node("new", "old"):
    name, last = visit(again)
    assert name == "anna"
    session = cluster_sessions.SessionStore(last)
    assert session["cart"] == "full"
    assert session.get_expiry_age() == 1000, "the life that the session had"
    assert visit(last) == ("anna", last), "settled"
left = {row.session_key: row.expire_date - timezone.now() for row in Session.objects.all()}
assert all(life <= timedelta(seconds=60) for key, life in left.items() if key in (first, second, third, again)), left
assert left[last] > timedelta(seconds=900), left
gone = cluster_sessions.SessionStore(last)
gone.flush()
with node("new", "old"):
    assert visit(last)[0] == "", "who logged out is logged out"
with node("other"):
    assert visit(second)[0] == "", "a key that nobody knows"
print("OK", django.VERSION)
"""

MIGRATIONS = """
import sys
import django
django.setup()
import cluster_wsgi
from django.db.migrations import executor, recorder
from django.db.migrations.loader import MigrationLoader
found = cluster_wsgi._migrations_on_disk()
assert ("auth", "0001_initial") in found
applied = dict.fromkeys(found)
recorder.MigrationRecorder.applied_migrations = lambda self: dict(applied)
assert cluster_wsgi._check_migrations() == ""
assert "django.contrib.auth.migrations.0001_initial" not in sys.modules, "nothing is imported where nothing is missing"
class Judge:
    def __init__(self, connection):
        self.loader = MigrationLoader(None)
    def migration_plan(self, targets):
        left = sorted(set(self.loader.disk_migrations) - set(applied))
        return [(self.loader.disk_migrations[key], False) for key in left]
executor.MigrationExecutor = Judge
del applied["auth", "0002_alter_permission_name_max_length"]
assert cluster_wsgi._check_migrations() == "1 unapplied: auth.0002_alter_permission_name_max_length"
assert found == set(MigrationLoader(None).disk_migrations), "what Django itself finds"
print("OK", django.VERSION)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


# The oldest and the newest: the example site of all scenarios runs on the one between.
@pytest.fixture(scope="module", params=["4.2", pytest.param("5.2", marks=pytest.mark.full), "6"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `django-admin startproject` of a version makes, beside an environment (.venv) with that version."""
    directory: Path = tmp_path_factory.mktemp("project")
    python = "3.13" if request.param == "6" else sys.executable
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.13.*/bin/python")) if python == "3.13" else []
    wanted = str(pyenv[-1]) if pyenv else python
    found = subprocess.run([UV, "python", "find", wanted], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"Django {request.param} needs Python {python}, which this machine does not have")
    run(UV, "venv", "-q", "--python", found.stdout.strip(), ".venv", cwd=directory)
    packages = [f"django=={request.param}.*", "django-redis", "psycopg[binary]"]
    run(UV, "pip", "install", "-q", "--python", ".venv/bin/python", *packages, cwd=directory)
    run(".venv/bin/django-admin", "startproject", "mysite", ".", cwd=directory)
    return directory


def variables(project: Path, **more: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "cluster_settings",
        "PYTHONPATH": f"{FILES}:{project}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CLUSTER_PROJECT_SETTINGS": "mysite.settings",
        **more,
    }


def test_static_files_are_collected_without_any_server(project: Path) -> None:
    environment = variables(project, CLUSTER_BUILD="1", CLUSTER_STATIC_HASHED="1", CLUSTER_STATIC_ROOT=f"{project}/out")
    run(".venv/bin/python", "manage.py", "collectstatic", "--noinput", "-v0", cwd=project, **environment)

    assert (project / "out" / "staticfiles.json").is_file()


def test_router_and_cache(project: Path) -> None:
    environment = variables(
        project,
        CLUSTER_SECRET_KEY="k",
        CLUSTER_REPLICA_ROUTER="1",
        CLUSTER_REDIS_HOSTS="127.0.0.1",
        CLUSTER_REDIS_PORT="9",
    )

    assert "OK" in run(".venv/bin/python", "-c", ROUTER, cwd=project, **environment)


def test_migrations_that_are_all_applied_are_not_imported(project: Path) -> None:
    environment = variables(project, CLUSTER_SECRET_KEY="k")

    assert "OK" in run(".venv/bin/python", "-c", MIGRATIONS, cwd=project, **environment)


def test_connections_wait_a_moment_for_a_primary(project: Path) -> None:
    environment = variables(
        project, CLUSTER_SECRET_KEY="k", CLUSTER_DATABASE_HOSTS="127.0.0.1,127.0.0.1", CLUSTER_DATABASE_PORT="9"
    )

    assert "OK" in run(".venv/bin/python", "-c", PATIENCE, cwd=project, **environment)


def test_sessions_do_not_believe_copies_from_before_an_outage(project: Path) -> None:
    environment = variables(project, CLUSTER_SECRET_KEY="k")

    assert "OK" in run(".venv/bin/python", "-c", SESSIONS, cwd=project, **environment)


def answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@pytest.fixture
def two_redis(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two servers at one port of two addresses; the variables that name them."""
    hosts = ["127.0.0.1", "127.0.0.2"]
    port = free_port()
    options = ["--port", str(port), "--save", "", "--repl-diskless-sync-delay", "0"]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            command = ["redis-server", "--bind", host, "--dir", str(tmp_path), *options]
            server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            stack.callback(server.terminate)
        for host in hosts:
            wait_for(f"Redis answers at {host}", functools.partial(answers, host, port))
        yield {"CLUSTER_REDIS_HOSTS": ",".join(hosts), "CLUSTER_REDIS_PORT": str(port)}


def test_sessions_after_a_failover_that_nobody_noticed(project: Path, two_redis: dict[str, str]) -> None:
    environment = variables(project, CLUSTER_SECRET_KEY="k", **two_redis)

    assert "OK" in run(".venv/bin/python", "-c", FAILOVER, cwd=project, **environment)


def test_a_change_of_the_secret_key_logs_nobody_out(project: Path) -> None:
    environment = variables(project, CLUSTER_SECRET_KEY="k")

    assert "OK" in run(".venv/bin/python", "-c", KEYS, cwd=project, **environment)
