# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that wait a moment while the primary moves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/django/files"))

import cluster_database

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
