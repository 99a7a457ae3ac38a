# SPDX-License-Identifier: GPL-3.0-or-later
"""cluster_settings over settings modules as projects have them. It needs no Django, so neither do these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).resolve().parents[2] / "roles" / "django" / "files"
ENVIRONMENT = {
    "CLUSTER_PROJECT_SETTINGS": "mysite.settings",
    "CLUSTER_NODE_NAME": "app1",
    "CLUSTER_NODE_ADDRESS": "192.0.2.21",
    "CLUSTER_DATABASE_HOSTS": "192.0.2.31,192.0.2.32",
    "CLUSTER_DATABASE_PASSWORD": "database-password",
    "CLUSTER_REDIS_HOSTS": "192.0.2.41,192.0.2.42",
    "CLUSTER_REDIS_SENTINEL_PORT": "26379",
    "CLUSTER_REDIS_USER": "web",
    "CLUSTER_REDIS_PASSWORD": "redis-password",
    "CLUSTER_SECRET_KEY": "the-key",
    "CLUSTER_DOMAINS": "example.com,www.example.com",
    "CLUSTER_ORIGINS": "https://example.com",
    "CLUSTER_TLS": "1",
}
# What `django-admin startproject` writes, as far as it matters here.
PLAIN = """
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent
DEBUG = True
SECRET_KEY = "insecure"
ALLOWED_HOSTS = []
INSTALLED_APPS = ["django.contrib.sessions"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3",
    "ATOMIC_REQUESTS": True, "OPTIONS": {"timeout": 20}}}
STATIC_URL = "static/"
"""
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Imports cluster_settings over a project in a fresh Python and returns its upper-case names."""

    def loaded(source: str = PLAIN, environment: dict[str, str] | None = None, **files: str) -> dict[str, Any]:
        package = tmp_path / "mysite"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("")
        for name, text in {"settings": source, **files}.items():
            (package / f"{name}.py").write_text(text)
        variables = ENVIRONMENT if environment is None else environment
        code = (
            "import json, cluster_settings as s; "
            "print(json.dumps({n: getattr(s, n) for n in dir(s) if n.isupper()}, default=str))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{FILES}:{tmp_path}", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return loaded


def test_default_database_finds_the_primary_among_all_hosts(load: Load) -> None:
    default = load()["DATABASES"]["default"]

    assert default["ENGINE"] == "django.db.backends.postgresql"
    assert default["HOST"] == "192.0.2.31,192.0.2.32"
    assert default["PORT"] == "5432"
    assert default["PASSWORD"] == "database-password"
    assert default["ATOMIC_REQUESTS"] is True
    assert (default["CONN_MAX_AGE"], default["CONN_HEALTH_CHECKS"]) == (60, True)
    assert default["OPTIONS"]["target_session_attrs"] == "read-write"
    assert default["OPTIONS"]["connect_timeout"] == 2
    assert default["OPTIONS"]["tcp_user_timeout"] == 3000
    assert "timeout" not in default["OPTIONS"], "an option of another engine"


def test_replica_prefers_a_standby_and_is_not_used_by_itself(load: Load) -> None:
    settings = load()

    assert settings["DATABASES"]["replica"]["OPTIONS"]["target_session_attrs"] == "prefer-standby"
    assert settings["DATABASES"]["replica"]["TEST"] == {"MIRROR": "default"}
    assert "DATABASE_ROUTERS" not in settings


def test_router_comes_after_those_of_the_project(load: Load) -> None:
    settings = load(
        PLAIN + 'DATABASE_ROUTERS = ["mysite.routers.Legacy"]\n', {**ENVIRONMENT, "CLUSTER_REPLICA_ROUTER": "1"}
    )

    assert settings["DATABASE_ROUTERS"] == ["mysite.routers.Legacy", "cluster_router.ReplicaRouter"]


def test_other_aliases_of_the_project_stay(load: Load) -> None:
    legacy = {"ENGINE": "django.db.backends.mysql", "NAME": "legacy", "HOST": "old.example.com"}
    settings = load(PLAIN + f'DATABASES["legacy"] = {legacy!r}\nCACHES = {{"files": {{"BACKEND": "x"}}}}\n')

    assert settings["DATABASES"]["legacy"] == legacy
    assert settings["CACHES"]["files"] == {"BACKEND": "x"}


@pytest.mark.parametrize(
    ("engine", "expected", "contrib"),
    [
        ("django.db.backends.sqlite3", "django.db.backends.postgresql", True),
        ("django.contrib.gis.db.backends.spatialite", "django.contrib.gis.db.backends.postgis", True),
        ("django.contrib.gis.db.backends.postgis", "django.contrib.gis.db.backends.postgis", False),
        ("django_prometheus.db.backends.postgresql", "django_prometheus.db.backends.postgresql", False),
        ("psqlextra.backend", "psqlextra.backend", False),
    ],
)
def test_engine_is_kept_when_it_is_postgresql(load: Load, engine: str, expected: str, contrib: bool) -> None:
    settings = load(f'INSTALLED_APPS = []\nDATABASES = {{"default": {{"ENGINE": "{engine}", "NAME": "x"}}}}\n')

    assert settings["DATABASES"]["default"]["ENGINE"] == expected
    assert ("django.contrib.postgres" in settings["INSTALLED_APPS"]) is contrib


def test_pool_of_the_project_excludes_persistent_connections(load: Load) -> None:
    source = PLAIN + (
        'DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": {"min_size": 2}}}}\n'
    )

    default = load(source)["DATABASES"]["default"]
    assert default["CONN_MAX_AGE"] == 0
    assert default["OPTIONS"]["pool"] == {"min_size": 2}


def test_caches_are_redis_and_sessions_have_their_own(load: Load) -> None:
    settings = load(
        PLAIN + 'CACHES = {"default": {"BACKEND": "x", "TIMEOUT": 9, "KEY_PREFIX": "p", "LOCATION": "y"}}\n'
    )

    default, sessions = settings["CACHES"]["default"], settings["CACHES"]["sessions"]
    assert default["BACKEND"] == sessions["BACKEND"] == "django_redis.cache.RedisCache"
    assert (default["TIMEOUT"], default["KEY_PREFIX"]) == (9, "p")
    assert default["LOCATION"] != sessions["LOCATION"], "clearing the cache would log everybody out"
    assert default["OPTIONS"]["IGNORE_EXCEPTIONS"] is True
    assert default["OPTIONS"]["CONNECTION_POOL_KWARGS"]["members"] == [["192.0.2.41", 6379], ["192.0.2.42", 6379]]
    assert default["OPTIONS"]["CONNECTION_POOL_KWARGS"]["sentinels"] == [["192.0.2.41", 26379], ["192.0.2.42", 26379]]
    assert settings["SESSION_CACHE_ALIAS"] == "sessions"


@pytest.mark.parametrize(
    ("apps", "engine", "expected"),
    [
        (["django.contrib.sessions"], None, "cluster_sessions"),
        (["django.contrib.sessions"], "django.contrib.sessions.backends.file", "cluster_sessions"),
        ([], "django.contrib.sessions.backends.cache", "django.contrib.sessions.backends.cache"),
        (["django.contrib.sessions"], "user_sessions.backends.db", "user_sessions.backends.db"),
        (
            ["django.contrib.sessions"],
            "django.contrib.sessions.backends.signed_cookies",
            "django.contrib.sessions.backends.signed_cookies",
        ),
    ],
)
def test_session_engine(load: Load, apps: list[str], engine: str | None, expected: str) -> None:
    line = f"SESSION_ENGINE = {engine!r}\n" if engine else ""

    assert load(f"INSTALLED_APPS = {apps!r}\nDATABASES = {{}}\n{line}")["SESSION_ENGINE"] == expected


def test_hosts_origins_proxy_and_cookies(load: Load) -> None:
    settings = load(PLAIN.replace("ALLOWED_HOSTS = []", 'ALLOWED_HOSTS = ["shop.example.org"]'))

    assert settings["ALLOWED_HOSTS"][:4] == ["shop.example.org", "example.com", "www.example.com", "192.0.2.21"]
    assert settings["CSRF_TRUSTED_ORIGINS"] == ["https://example.com"]
    assert settings["SECURE_PROXY_SSL_HEADER"] == ["HTTP_X_FORWARDED_PROTO", "https"]
    assert settings["USE_X_FORWARDED_HOST"] is False
    assert settings["SESSION_COOKIE_SECURE"] is settings["CSRF_COOKIE_SECURE"] is True
    assert settings["DEBUG"] is False


def test_without_tls_cookies_are_left_to_the_project(load: Load) -> None:
    assert "SESSION_COOKIE_SECURE" not in load(environment={**ENVIRONMENT, "CLUSTER_TLS": "0"})


def test_keys_come_from_the_cluster(load: Load) -> None:
    settings = load(environment={**ENVIRONMENT, "CLUSTER_SECRET_KEY_FALLBACKS": '["old, with comma"]'})

    assert settings["SECRET_KEY"] == "the-key"
    assert settings["SECRET_KEY_FALLBACKS"] == ["old, with comma"]


def test_missing_key_is_an_error_not_a_random_key(load: Load) -> None:
    with pytest.raises(RuntimeError, match="CLUSTER_SECRET_KEY is not set"):
        load(environment={key: value for key, value in ENVIRONMENT.items() if key != "CLUSTER_SECRET_KEY"})


def test_error_of_the_projects_settings_is_shown(load: Load) -> None:
    with pytest.raises(RuntimeError, match="No module named 'missing_package'"):
        load("import missing_package\n")


def test_build_needs_neither_secrets_nor_servers(load: Load) -> None:
    source = PLAIN + 'import os\nTOKEN = os.environ["SECRET_KEY"]\nURL = os.environ["DATABASE_URL"]\n'
    settings = load(
        source,
        {"CLUSTER_BUILD": "1", "CLUSTER_PROJECT_SETTINGS": "mysite.settings", "CLUSTER_STATIC_ROOT": "/build/static"},
    )

    assert settings["STATIC_ROOT"] == "/build/static"
    assert settings["SECRET_KEY"]
    assert settings["CACHES"]["default"]["BACKEND"].endswith("LocMemCache")


def test_settings_in_a_package_with_relative_and_star_imports(load: Load) -> None:
    """As `wagtail start` writes them: production has neither a key nor hosts, and a local module may be missing."""
    production = (
        'from .base import *\nDEBUG = False\nSTORAGES["staticfiles"]["BACKEND"] = "x"\n'
        "try:\n    from .local import *\nexcept ImportError:\n    pass\n"
    )
    base = PLAIN.replace('SECRET_KEY = "insecure"', "") + (
        'STORAGES = {"default": {"BACKEND": "x"}, "staticfiles": {"BACKEND": "y"}}\nWAGTAIL_SITE_NAME = "mysite"\n'
    )
    settings = load(
        PLAIN,
        {**ENVIRONMENT, "CLUSTER_PROJECT_SETTINGS": "mysite.production"},
        production=production,
        base=base,
    )

    assert settings["WAGTAIL_SITE_NAME"] == "mysite"
    assert settings["STORAGES"]["staticfiles"]["BACKEND"] == "x"
    assert settings["SECRET_KEY"] == "the-key"


def test_release_describes_itself(load: Load, tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text('{"id": "7-abc", "settings_module": "mysite.settings"}')
    environment = {**ENVIRONMENT, "CLUSTER_RELEASE_DIR": str(tmp_path)}
    del environment["CLUSTER_PROJECT_SETTINGS"]
    settings = load(environment=environment)

    assert settings["CLUSTER_RELEASE_ID"] == "7-abc"
    assert settings["CLUSTER_NODE_NAME"] == "app1"
    assert settings["STATIC_ROOT"] == str(tmp_path / "static")


def test_hashed_names_by_choice(load: Load) -> None:
    environment = {**ENVIRONMENT, "CLUSTER_STATIC_HASHED": "1", "CLUSTER_STATIC_URL": "https://cdn.example.com/static"}
    settings = load(PLAIN + 'STATICFILES_STORAGE = "old.name"\n', environment)

    assert settings["STATIC_URL"] == "https://cdn.example.com/static/"
    assert settings["STORAGES"]["staticfiles"]["BACKEND"].endswith("ManifestStaticFilesStorage")
    assert settings["STORAGES"]["default"]["BACKEND"].endswith("FileSystemStorage")
    assert "STATICFILES_STORAGE" not in settings, "Django 4.2 refuses both"
    assert "STORAGES" not in load()


@pytest.mark.parametrize(
    ("logging", "root"),
    [
        ({}, ["cluster_stderr"]),
        (
            {"version": 1, "handlers": {"file": {"class": "logging.FileHandler"}}, "root": {"handlers": ["file"]}},
            ["file", "cluster_stderr"],
        ),
        (
            {"version": 1, "handlers": {"out": {"class": "logging.StreamHandler"}}, "root": {"handlers": ["out"]}},
            ["out"],
        ),
        (
            {
                "version": 1,
                "handlers": {"out": {"class": "logging.StreamHandler", "filters": ["require_debug_true"]}},
                "root": {"handlers": ["out"]},
            },
            ["out", "cluster_stderr"],
        ),
    ],
)
def test_tracebacks_reach_stderr(load: Load, logging: dict[str, Any], root: list[str]) -> None:
    settings = load(PLAIN + f"LOGGING = {logging!r}\n")

    assert settings["LOGGING"]["root"]["handlers"] == root
    assert settings["LOGGING"]["handlers"]["cluster_stderr"]["class"] == "logging.StreamHandler"


def test_logger_that_does_not_propagate_gets_the_handler_too(load: Load) -> None:
    logging = {
        "version": 1,
        "handlers": {"mail": {"class": "django.utils.log.AdminEmailHandler"}},
        "loggers": {"django.request": {"handlers": ["mail"], "propagate": False}, "app": {"level": "INFO"}},
    }
    loggers = load(PLAIN + f"LOGGING = {logging!r}\n")["LOGGING"]["loggers"]

    assert loggers["django.request"]["handlers"] == ["mail", "cluster_stderr"]
    assert loggers["app"] == {"level": "INFO"}
