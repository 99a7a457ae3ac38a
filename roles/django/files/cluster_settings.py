# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings module of a Django project that runs on the cluster.

It imports the project's own settings module, takes over its names and overrides what a cluster must. The file is
the same on every node and in every project: everything it needs comes from the environment (CLUSTER_*), which
Flotilla keeps in /etc/django/environment. The project's code is not touched.

CLUSTER_PROJECT_SETTINGS    the project's settings module; default: settings_module of the release's release.json
CLUSTER_BUILD               1 while a release is built: no database, no Redis and no secret is needed
CLUSTER_RELEASE_DIR         the release; default: the directory in which the virtual environment stands
CLUSTER_NODE_NAME           this node's name; CLUSTER_NODE_ADDRESS its address
CLUSTER_DATABASE_HOSTS      a,b,c: every member; _PORT, _NAME, _USER, _PASSWORD, _SSLMODE, _SSLROOTCERT, _CONN_MAX_AGE
CLUSTER_REPLICA_ROUTER      1: read from standbys (cluster_router.py)
CLUSTER_REDIS_HOSTS         a,b,c: every member; _PORT, _USER, _PASSWORD; _SENTINEL_PORT where each has a Sentinel;
                            _CA: the authority that signed their certificates, where they speak TLS
CLUSTER_SECRET_KEY          and CLUSTER_SECRET_KEY_FALLBACKS, a JSON list
CLUSTER_STATIC_ROOT         where collectstatic writes; default: static/ of the release
CLUSTER_STATIC_URL          for example /static/ or https://cdn.example.com/static/
CLUSTER_STATIC_HASHED       1: ManifestStaticFilesStorage, whatever the project says
CLUSTER_DOMAINS             a,b: names under which the site is reached; CLUSTER_ORIGINS their origins with scheme
CLUSTER_TLS                 1: clients come by HTTPS
CLUSTER_USE_X_FORWARDED_HOST  1: believe X-Forwarded-Host
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []

_POSTGRESQL = "django.db.backends.postgresql"
_POSTGIS = "django.contrib.gis.db.backends.postgis"
_CONTRIB_SESSIONS = tuple(f"django.contrib.sessions.backends.{x}" for x in ("db", "cache", "cached_db", "file"))
_MANIFEST_STORAGE = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
_KEPT_OF_DATABASE = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "TIME_ZONE", "DISABLE_SERVER_SIDE_CURSORS", "TEST")


def _text(name: str, default: str = "") -> str:
    return os.environ.get(f"CLUSTER_{name}", "").strip() or default


def _flag(name: str) -> bool:
    return _text(name).lower() in ("1", "true", "yes", "on")


def _list(name: str) -> list[str]:
    return [item.strip() for item in _text(name).split(",") if item.strip()]


def _read_release(directory: Path) -> dict[str, Any]:
    try:
        release: dict[str, Any] = json.loads((directory / "release.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return release if isinstance(release, dict) else {}


def _is_postgresql(engine: str) -> bool:
    return any(word in engine for word in ("postgresql", "postgis", "psqlextra", "postgres"))


def _databases(databases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The project's aliases, with `default` on the cluster and an alias `replica` that prefers a standby."""
    project = dict(databases.get("default") or {})
    engine = str(project.get("ENGINE") or "")
    options: dict[str, Any] = {}
    if _is_postgresql(engine):
        options = dict(project.get("OPTIONS") or {})
        for key in ("service", "passfile", "hostaddr"):
            options.pop(key, None)
    else:
        engine = _POSTGIS if "gis" in engine or "spatialite" in engine else _POSTGRESQL
    # libpq finds the primary itself, so a failover needs no change here. A dead or frozen server is given up after
    # 2 s when connecting, after 3 s with data under way, and after about 19 s on an idle connection.
    options.update(
        connect_timeout=2,
        keepalives=1,
        keepalives_idle=10,
        keepalives_interval=3,
        keepalives_count=3,
        tcp_user_timeout=3000,
        application_name=f"django {_text('NODE_NAME', 'build')}",
    )
    if _text("DATABASE_SSLMODE"):
        options["sslmode"] = _text("DATABASE_SSLMODE")
    if _text("DATABASE_SSLROOTCERT"):
        options["sslrootcert"] = _text("DATABASE_SSLROOTCERT")
    common: dict[str, Any] = {key: project[key] for key in _KEPT_OF_DATABASE if key in project}
    common.update(
        ENGINE=engine,
        NAME=_text("DATABASE_NAME", "django"),
        USER=_text("DATABASE_USER", "django"),
        PASSWORD=_text("DATABASE_PASSWORD"),
        HOST=",".join(_list("DATABASE_HOSTS")) or "127.0.0.1",
        PORT=_text("DATABASE_PORT", "5432"),
        # A pool of the project's excludes persistent connections.
        CONN_MAX_AGE=0 if options.get("pool") else int(_text("DATABASE_CONN_MAX_AGE", "60")),
        CONN_HEALTH_CHECKS=True,
    )
    result = dict(databases)
    result["default"] = {**common, "OPTIONS": {**options, "target_session_attrs": "read-write"}}
    result.setdefault(
        "replica",
        {
            **common,
            "OPTIONS": {**options, "target_session_attrs": "prefer-standby"},
            "TEST": {"MIRROR": "default"},
        },
    )
    return result


def _cache(project: dict[str, Any], database: int) -> dict[str, Any]:
    """A django-redis cache on whichever member is the master; an outage is a cache miss, not an error page."""
    kept: dict[str, Any] = {
        key: project[key] for key in ("TIMEOUT", "KEY_PREFIX", "VERSION", "KEY_FUNCTION") if key in project
    }
    if _flag("BUILD"):
        return {**kept, "BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    hosts = _list("REDIS_HOSTS") or ["127.0.0.1"]
    port = _text("REDIS_PORT", "6379")
    sentinel_port = int(_text("REDIS_SENTINEL_PORT", "0"))
    options: dict[str, Any] = {
        "CLIENT_CLASS": "django_redis.client.DefaultClient",
        "IGNORE_EXCEPTIONS": True,
        "SOCKET_CONNECT_TIMEOUT": 0.5,
        "SOCKET_TIMEOUT": 1,
        "CONNECTION_POOL_CLASS": "cluster_redis.MasterConnectionPool",
        "CONNECTION_POOL_KWARGS": {
            "members": tuple((host, int(port)) for host in hosts),
            "sentinels": tuple((host, sentinel_port) for host in hosts if sentinel_port),
            "username": _text("REDIS_USER") or None,
            "ca_file": _text("REDIS_CA"),
        },
    }
    if _text("REDIS_PASSWORD"):
        options["PASSWORD"] = _text("REDIS_PASSWORD")
    return {
        **kept,
        "BACKEND": "django_redis.cache.RedisCache",
        # The host in the address is a placeholder: cluster_redis chooses among `members`.
        "LOCATION": f"redis://redis-master.invalid:{port}/{database}",
        "OPTIONS": options,
    }


def _writes_to_stderr(handlers: dict[str, Any], names: list[str]) -> bool:
    for name in names:
        handler = handlers.get(name) or {}
        streams = str(handler.get("class", "")).endswith(("StreamHandler", "RichHandler"))
        if streams and not any("debug" in str(item) for item in handler.get("filters") or []):
            return True
    return False


def _logging(project: dict[str, Any]) -> dict[str, Any]:
    """See to it that warnings and tracebacks reach stderr, and with it the journal: Django's default sends none."""
    config: dict[str, Any] = {"version": 1, "disable_existing_loggers": False, **project}
    config["formatters"] = dict(config.get("formatters") or {})
    config["handlers"] = dict(config.get("handlers") or {})
    config["formatters"]["cluster"] = {"format": "%(levelname)s %(name)s: %(message)s"}
    config["handlers"]["cluster_stderr"] = {
        "class": "logging.StreamHandler",
        "level": "WARNING",
        "formatter": "cluster",
    }

    def completed(logger: dict[str, Any]) -> dict[str, Any]:
        names = list(logger.get("handlers") or [])
        if not _writes_to_stderr(config["handlers"], names):
            names.append("cluster_stderr")
        return {**logger, "handlers": names}

    config["root"] = completed(dict(config.get("root") or {"level": "WARNING"}))
    loggers = dict(config.get("loggers") or {})
    for name, logger in loggers.items():
        if name == "" or (logger.get("propagate") is False and logger.get("handlers")):
            loggers[name] = completed(dict(logger))
    config["loggers"] = loggers
    return config


def _storages(project: dict[str, Any]) -> dict[str, Any]:
    """Hashed names for static files by choice: projects with missing source maps fail with them."""
    storages = dict(project.get("STORAGES") or {})
    storages.setdefault(
        "default", {"BACKEND": project.get("DEFAULT_FILE_STORAGE", "django.core.files.storage.FileSystemStorage")}
    )
    storages["staticfiles"] = {"BACKEND": _MANIFEST_STORAGE}
    return storages


def _merged(first: Any, *more: str) -> list[str]:
    result = [str(item) for item in first or []]
    result.extend(item for item in more if item and item not in result)
    return result


def _build_placeholders() -> None:
    """Names that a project's settings commonly insist on; the real values never come near the build."""
    for name in ("SECRET_KEY", "DJANGO_SECRET_KEY"):
        os.environ.setdefault(name, "only-for-the-build")
    os.environ.setdefault("DATABASE_URL", "postgres://build@127.0.0.1:5432/build")
    os.environ.setdefault("REDIS_URL", "redis://127.0.0.1:6379/0")


def _cluster_settings() -> dict[str, Any]:
    building = _flag("BUILD")
    if building:
        _build_placeholders()
    release_dir = Path(_text("RELEASE_DIR") or Path(sys.prefix).resolve().parent)
    release = _read_release(release_dir)
    module_name = _text("PROJECT_SETTINGS") or str(release.get("settings_module") or "")
    if not module_name:
        raise RuntimeError("cluster_settings: CLUSTER_PROJECT_SETTINGS names no settings module of the project")
    if module_name == __name__:
        raise RuntimeError("cluster_settings: CLUSTER_PROJECT_SETTINGS must name the project's own settings module")
    module = importlib.import_module(module_name)
    project = {name: getattr(module, name) for name in dir(module) if name.isupper()}
    settings = dict(project)

    settings["CLUSTER_NODE_NAME"] = _text("NODE_NAME")
    settings["CLUSTER_RELEASE_ID"] = str(release.get("id") or "")
    settings["DEBUG"] = False

    secret_key = _text("SECRET_KEY")
    if building:
        secret_key = secret_key or str(project.get("SECRET_KEY") or "only-for-the-build")
    if not secret_key:
        raise RuntimeError("cluster_settings: CLUSTER_SECRET_KEY is not set (variable django_secret_key)")
    settings["SECRET_KEY"] = secret_key
    former_keys = json.loads(_text("SECRET_KEY_FALLBACKS", "[]"))
    if not building:
        former_keys = importlib.import_module("cluster_secrets").FallbackKeys(former_keys, secret_key)
    settings["SECRET_KEY_FALLBACKS"] = former_keys

    settings["DATABASES"] = _databases(dict(project.get("DATABASES") or {}))
    # Without a driver there is nothing to change, and Django says so itself when it connects.
    if (
        not building
        and importlib.util.find_spec("django")
        and any(map(importlib.util.find_spec, ("psycopg", "psycopg2")))
    ):
        importlib.import_module("cluster_database").be_patient()
    if _flag("REPLICA_ROUTER"):
        settings["DATABASE_ROUTERS"] = [*(project.get("DATABASE_ROUTERS") or []), "cluster_router.ReplicaRouter"]
        settings["CLUSTER_REPLICA_ROUTER"] = True
    apps = list(project.get("INSTALLED_APPS") or [])
    engine = str((dict(project.get("DATABASES") or {}).get("default") or {}).get("ENGINE") or "")
    contrib_postgres = ("django.contrib.postgres", "django.contrib.postgres.apps.PostgresConfig")
    if not _is_postgresql(engine) and not any(name in apps for name in contrib_postgres):
        apps.append("django.contrib.postgres")
    settings["INSTALLED_APPS"] = apps

    caches = dict(project.get("CACHES") or {})
    caches["default"] = _cache(dict(caches.get("default") or {}), 0)
    # Sessions have an alias of their own, so that clearing the cache logs nobody out.
    caches["sessions"] = _cache({"KEY_PREFIX": "session"}, 1)
    settings["CACHES"] = caches
    engine = str(project.get("SESSION_ENGINE") or "django.contrib.sessions.backends.db")
    if engine in _CONTRIB_SESSIONS:
        has_table = any(name.startswith("django.contrib.sessions") for name in apps)
        settings["SESSION_ENGINE"] = "cluster_sessions" if has_table else "django.contrib.sessions.backends.cache"
    settings["SESSION_CACHE_ALIAS"] = "sessions"

    settings["STATIC_ROOT"] = _text("STATIC_ROOT", str(release_dir / "static"))
    static_url = _text("STATIC_URL", str(project.get("STATIC_URL") or "/static/"))
    settings["STATIC_URL"] = static_url if static_url.endswith("/") else f"{static_url}/"
    if _flag("STATIC_HASHED"):
        settings["STORAGES"] = _storages(project)
        # Django 4.2 and 5.0 refuse the old names beside STORAGES.
        settings.pop("STATICFILES_STORAGE", None)
        settings.pop("DEFAULT_FILE_STORAGE", None)

    settings["ALLOWED_HOSTS"] = _merged(
        project.get("ALLOWED_HOSTS"), *_list("DOMAINS"), _text("NODE_ADDRESS"), "localhost", "127.0.0.1"
    )
    settings["CSRF_TRUSTED_ORIGINS"] = _merged(project.get("CSRF_TRUSTED_ORIGINS"), *_list("ORIGINS"))
    # The balancer removes this header from what clients send, and the nodes are reached through it only.
    settings["SECURE_PROXY_SSL_HEADER"] = ("HTTP_X_FORWARDED_PROTO", "https")
    settings["USE_X_FORWARDED_HOST"] = _flag("USE_X_FORWARDED_HOST")
    if _flag("TLS"):
        settings["SESSION_COOKIE_SECURE"] = True
        settings["CSRF_COOKIE_SECURE"] = True

    if project.get("LOGGING_CONFIG", "logging.config.dictConfig") == "logging.config.dictConfig":
        settings["LOGGING"] = _logging(dict(project.get("LOGGING") or {}))
    return settings


globals().update(_cluster_settings())
