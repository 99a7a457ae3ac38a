# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that wait a moment while the primary moves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/django/files"))

import cluster_database
import cluster_secrets

READ_ONLY = "connection to server at 192.0.2.33, port 5432 failed: session is read-only"


class Server:
    """Says no for some time; time passes only while somebody sleeps or asks."""

    def __init__(self, back_after: float, message: str = READ_ONLY) -> None:
        self.now, self.back_after, self.message, self.asked = 0.0, back_after, message, 0

    def connect(self) -> str:
        self.asked += 1
        if self.now < self.back_after:
            raise ConnectionError(self.message)
        return "connection"

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def patience(server: Server) -> cluster_database.Patience:
    return cluster_database.Patience(lambda: server.now, server.sleep)


def test_a_request_waits_for_the_new_primary() -> None:
    server = Server(1.0)
    assert patience(server).connect(server.connect, ConnectionError) == "connection"
    assert server.now == pytest.approx(1.0, abs=0.06)


def test_during_an_outage_only_the_first_ones_wait() -> None:
    server = Server(60.0)
    waiting = patience(server)
    with pytest.raises(ConnectionError):
        waiting.connect(server.connect, ConnectionError)
    assert server.now == pytest.approx(cluster_database.PATIENCE, abs=0.06)
    server.asked, server.now = 0, 10.0
    with pytest.raises(ConnectionError):
        waiting.connect(server.connect, ConnectionError)
    assert (server.asked, server.now) == (1, 10.0)
    server.now = 61.0
    assert waiting.connect(server.connect, ConnectionError) == "connection"
    # Now it is worth waiting again.
    server.back_after = 62.0
    assert waiting.connect(server.connect, ConnectionError) == "connection"


def test_a_health_check_says_at_once_how_it_is_and_takes_nobodys_patience() -> None:
    server = Server(1.0)
    waiting = patience(server)
    with cluster_database.at_once(), pytest.raises(ConnectionError):
        waiting.connect(server.connect, ConnectionError)
    assert (server.asked, server.now) == (1, 0.0)
    # The next request in this thread waits as before.
    assert waiting.connect(server.connect, ConnectionError) == "connection"


@pytest.mark.parametrize(
    "message",
    [
        'FATAL:  password authentication failed for user "django"',
        'FATAL:  database "django" does not exist',
        'FATAL:  no pg_hba.conf entry for host "192.0.2.21"',
        'root certificate file "x" does not exist',
    ],
)
def test_what_does_not_pass_is_told_at_once(message: str) -> None:
    server = Server(1.0, message)
    with pytest.raises(ConnectionError):
        patience(server).connect(server.connect, ConnectionError)
    assert (server.asked, server.now) == (1, 0.0)


@pytest.mark.parametrize(
    "message",
    [
        READ_ONLY,
        "connection timeout expired",
        "connection refused",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is starting up",
        "FATAL:  terminating connection due to administrator command",
    ],
)
def test_what_passes(message: str) -> None:
    assert cluster_database.will_pass(message)


def test_other_errors_are_not_ours() -> None:
    server = Server(1.0)
    with pytest.raises(ConnectionError):
        patience(server).connect(server.connect, TimeoutError)
    assert server.asked == 1


class Guarded:
    """A server that lets in who has its password."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.tried: list[str] = []

    def connect(self, parameters: dict[str, str]) -> str:
        self.tried.append(parameters["password"])
        if parameters["password"] != self.password:
            raise ConnectionError('FATAL:  password authentication failed for user "django"')
        return "connection"


@pytest.mark.parametrize(
    ("server", "coming", "tried", "remembered"),
    [
        pytest.param("old", "old", ["old"], "old", id="nothing changes"),
        pytest.param("old", "new", ["old"], "old", id="not changed yet"),
        pytest.param("new", "new", ["old", "new"], "new", id="changed"),
    ],
)
def test_a_password_that_was_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, coming: str, tried: list[str], remembered: str
) -> None:
    (tmp_path / "coming").write_text(json.dumps({"database": coming}))
    monkeypatch.setattr(cluster_secrets, "COMING", tmp_path / "coming")
    guarded, alias = Guarded(server), {"PASSWORD": "old"}
    connect = cluster_database.with_either_password
    assert connect(guarded.connect, {"password": "old"}, alias) == "connection"
    assert (guarded.tried, alias["PASSWORD"]) == (tried, remembered)


@pytest.mark.parametrize(
    ("file", "passes"),
    [
        pytest.param('{"database": "old"}', False, id="a wrong password"),
        pytest.param("", False, id="no file that can be read"),
        pytest.param('{"database": "new"}', True, id="a standby that does not know it yet"),
    ],
)
def test_a_password_that_nobody_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, passes: bool) -> None:
    (tmp_path / "coming").write_text(file)
    monkeypatch.setattr(cluster_secrets, "COMING", tmp_path / "coming")
    guarded, alias = Guarded("other"), {"PASSWORD": "old"}
    with pytest.raises(ConnectionError) as raised:
        cluster_database.with_either_password(guarded.connect, {"password": "old"}, alias)
    assert cluster_database.will_pass(str(raised.value)) is passes
    assert alias["PASSWORD"] == "old"


def test_keys_that_other_nodes_sign_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster_secrets, "COMING", tmp_path / "coming")
    keys = cluster_secrets.FallbackKeys(["older"], "old")
    assert list(keys) == ["older"]
    for coming, expected in (("old", ["older"]), ("older", ["older"]), ("new", ["older", "new"])):
        (tmp_path / "coming").write_text(json.dumps({"secret_key": coming}))
        assert list(keys) == expected
