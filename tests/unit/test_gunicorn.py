# SPDX-License-Identifier: GPL-3.0-or-later
"""gunicorn's own configuration file, run as gunicorn runs it."""

from __future__ import annotations

from typing import Any

import pytest
from render import render


def settings(**variables: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(render("django", "gunicorn.conf.py.j2", variables), "gunicorn.conf.py", "exec"), found)
    return found


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        pytest.param({}, 4, id="as many connections as threads"),
        pytest.param({"django_threads": 6}, 6, id="threads by choice"),
        pytest.param({"django_gunicorn_settings": {"threads": 3}}, 3, id="threads in gunicorn's own words"),
        pytest.param({"django_keepalive": 65}, None, id="kept connections are bound to a worker"),
        pytest.param({"django_gunicorn_settings": {"worker_class": "gevent"}}, None, id="no threads"),
        pytest.param({"django_gunicorn_settings": {"worker_connections": 9}}, 9, id="by choice"),
    ],
)
def test_a_worker_takes_no_more_connections_than_it_has_threads(variables: dict[str, Any], wanted: int | None) -> None:
    assert settings(**variables).get("worker_connections") == wanted
