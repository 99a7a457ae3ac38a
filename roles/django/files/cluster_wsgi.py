# SPDX-License-Identifier: GPL-3.0-or-later
"""The WSGI application gunicorn serves: the project's own, with two health addresses in front of it.

<path>       shallow, for the balancer: 200 while this process answers, 503 while the node's drain file exists.
<path>/deep  for deploys and people: 200 when the database can be written, Redis can be written, no migration is
             unapplied and the project's URLs can be imported; 503 with the reasons otherwise. It says more than the
             public should know and costs a database connection, so it is for callers that reach the node directly:
             the balancer refuses /-/ from outside.

Both are answered before Django sees the request: ALLOWED_HOSTS, SECURE_SSL_REDIRECT and middleware have no say.
<path> is CLUSTER_HEALTH_PATH, /-/health unless set.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import django

DEEP_SECONDS = 4.0
Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def _release() -> dict[str, Any]:
    directory = Path(os.environ.get("CLUSTER_RELEASE_DIR") or Path(sys.prefix).resolve().parent)
    try:
        release: dict[str, Any] = json.loads((directory / "release.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return release


def _project_application(name: str) -> Any:
    # Settings are fixed before the project's wsgi.py runs, which may assign DJANGO_SETTINGS_MODULE itself.
    django.setup()
    if not name:
        from django.core.wsgi import get_wsgi_application

        return get_wsgi_application()
    module_name, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    return getattr(importlib.import_module(module_name), attribute or "application")


def _check_database() -> str:
    """Empty, or why the database cannot be written."""
    from django.db import connection

    with connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            cursor.execute("SELECT 1")
            return ""
        cursor.execute("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
        in_recovery, read_only = cursor.fetchone()
    if in_recovery:
        return "the database server is a standby"
    return "the database is read only" if read_only == "on" else ""


def _check_redis() -> str:
    from django.conf import settings
    from django.core.cache import caches

    for alias in ("sessions", "default"):
        if "redis" not in str(settings.CACHES.get(alias, {}).get("BACKEND", "")).lower():
            continue
        cache: Any = caches[alias]
        # django-redis hides errors in the cache object, not in its client.
        target = getattr(cache, "client", cache)
        key, value = f"cluster-health-{os.environ.get('CLUSTER_NODE_NAME', '')}", str(time.time())
        target.set(key, value, timeout=60)
        return "" if target.get(key) == value else "Redis does not return what was written"
    return ""


def _migrations_on_disk() -> set[tuple[str, str]]:
    """(label of the app, name) of each migration, by the names of the files."""
    from django.apps import apps
    from django.db.migrations.loader import MigrationLoader

    found = set()
    for config in apps.get_app_configs():
        package, _ = MigrationLoader.migrations_module(config.label)
        spec = importlib.util.find_spec(package) if package else None
        places = (spec.submodule_search_locations if spec else None) or []
        files = [item.name for item in pkgutil.iter_modules(places) if not item.ispkg]
        found |= {(config.label, name) for name in files if name[0] not in "_~"}
    return found


def _check_migrations() -> str:
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor
    from django.db.migrations.recorder import MigrationRecorder

    # To import all migrations would keep the requests of this worker waiting. Django only has to judge where one is on
    # the disk that nobody has recorded, because it may stand for others (squashed).
    if _migrations_on_disk() <= set(MigrationRecorder(connection).applied_migrations()):
        return ""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if not plan:
        return ""
    names = [f"{migration.app_label}.{migration.name}" for migration, _ in plan]
    return f"{len(names)} unapplied: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _check_urls() -> str:
    # Django imports the views at the first request: until then a release that cannot answer a single one looks well.
    from django.urls import get_resolver

    return "" if get_resolver().url_patterns is not None else "there is no URLconf"


CHECKS: dict[str, Callable[[], str]] = {
    "database": _check_database,
    "redis": _check_redis,
    "migrations": _check_migrations,
    "urls": _check_urls,
}


def _without_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) > 3 and name.endswith(("PASSWORD", "SECRET_KEY", "_URL", "SECRET", "TOKEN")):
            text = text.replace(value, "***")
    return text


class Health:
    """The two health addresses; everything else goes to the project."""

    def __init__(self, application: Any, release: dict[str, Any]) -> None:
        self._application = application
        self._path = "/" + (os.environ.get("CLUSTER_HEALTH_PATH") or "/-/health").strip("/")
        self._drain_file = Path(os.environ.get("CLUSTER_DRAIN_FILE") or "/srv/django/drain")
        self._identity = {
            "release": str(release.get("id") or ""),
            "node": os.environ.get("CLUSTER_NODE_NAME", ""),
        }
        self._deep_lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in (self._path, f"{self._path}/deep"):
            result: Iterable[bytes] = self._application(environ, start_response)
            return result
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, {"status": "method not allowed"}
        elif path == self._path:
            status, body = self._shallow()
        else:
            status, body = self._deep()
        content = json.dumps({**body, **self._identity}).encode() + b"\n"
        start_response(
            f"{status.value} {status.phrase}",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else content]

    def _shallow(self) -> tuple[HTTPStatus, dict[str, Any]]:
        if self._drain_file.exists():
            return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "draining"}
        return HTTPStatus.OK, {"status": "ok"}

    def _deep(self) -> tuple[HTTPStatus, dict[str, Any]]:
        # One at a time: behind a server that hangs the threads of the checks would pile up.
        if not self._deep_lock.acquire(timeout=DEEP_SECONDS):
            return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failed", "reasons": ["an earlier check still hangs"]}
        results: dict[str, dict[str, Any]] = {}
        threads = [
            threading.Thread(target=self._run, args=(name, check, results), name=f"health-{name}", daemon=True)
            for name, check in CHECKS.items()
        ]
        deadline = time.monotonic() + DEEP_SECONDS
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._release_when_done(threads)
        checks = {
            name: results.get(name) or {"ok": False, "error": f"no answer within {DEEP_SECONDS:g} s"} for name in CHECKS
        }
        reasons = [f"{name}: {check['error']}" for name, check in checks.items() if not check["ok"]]
        body: dict[str, Any] = {"status": "failed" if reasons else "ok", "checks": checks, "reasons": reasons}
        if self._drain_file.exists():
            body["draining"] = True
        return (HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK), body

    def _release_when_done(self, threads: list[threading.Thread]) -> None:
        def wait() -> None:
            for thread in threads:
                thread.join()
            self._deep_lock.release()

        if any(thread.is_alive() for thread in threads):
            threading.Thread(target=wait, name="health-waiter", daemon=True).start()
        else:
            self._deep_lock.release()

    @staticmethod
    def _run(name: str, check: Callable[[], str], results: dict[str, dict[str, Any]]) -> None:
        import cluster_database
        from django.db import connections

        started = time.monotonic()
        try:
            with cluster_database.at_once():
                error = check()
        except Exception as problem:
            text = " ".join(str(problem).split())
            error = _without_secrets(f"{type(problem).__name__}: {text}"[:500])
        finally:
            # Connections belong to threads: this one's ends here, so each deep check connects anew.
            connections.close_all()
        result: dict[str, Any] = {"ok": not error, "ms": round((time.monotonic() - started) * 1000, 3)}
        if error:
            result["error"] = error
        results[name] = result


class PinWriters:
    """Keeps the clients that wrote a moment ago on the primary (cluster_router), across requests and nodes."""

    def __init__(self, application: Any) -> None:
        import cluster_router

        self._application = application
        self._router = cluster_router

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        router = self._router
        cookies = environ.get("HTTP_COOKIE", "").split(";")
        router.begin_request(pinned=any(item.strip().startswith(f"{router.PIN_COOKIE}=") for item in cookies))

        def start(status: str, headers: list[tuple[str, str]], *arguments: Any) -> Any:
            if router.has_written():
                secure = "; Secure" if environ.get("HTTP_X_FORWARDED_PROTO") == "https" else ""
                cookie = f"{router.PIN_COOKIE}=1; Max-Age={router.PIN_SECONDS}; Path=/; HttpOnly; SameSite=Lax{secure}"
                headers = [*headers, ("Set-Cookie", cookie)]
            return start_response(status, headers, *arguments)

        result: Iterable[bytes] = self._application(environ, start)
        return result


def _application() -> Any:
    release = _release()
    name = os.environ.get("CLUSTER_WSGI_APPLICATION") or str(release.get("wsgi_application") or "")
    application = _project_application(name)
    from django.conf import settings

    if getattr(settings, "CLUSTER_REPLICA_ROUTER", False):
        application = PinWriters(application)
    return Health(application, release)


application = _application()
