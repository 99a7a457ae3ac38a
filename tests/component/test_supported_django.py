# SPDX-License-Identifier: GPL-3.0-or-later
"""The generated settings and the replica router under every supported Django, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert 2.5 < waited < 8, waited
begun = time.monotonic()
try:
    User.objects.count()
except OperationalError as error:
    assert time.monotonic() - begun < 1, "waits again although it was in vain"
    print("OK", django.VERSION)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=["4.2", "5.2", "6"])
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


def test_connections_wait_a_moment_for_a_primary(project: Path) -> None:
    environment = variables(
        project, CLUSTER_SECRET_KEY="k", CLUSTER_DATABASE_HOSTS="127.0.0.1,127.0.0.1", CLUSTER_DATABASE_PORT="9"
    )

    assert "OK" in run(".venv/bin/python", "-c", PATIENCE, cwd=project, **environment)
