# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the modules believe that he is Redis: real sockets and certificates, and a server that answers like Redis."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as plan
from test_cluster_plan import authority, make

EARLIER = -2000  # days: what these two make is valid from 2030 on unless told otherwise
CA, ISSUER = authority("Authority", EARLIER)
STRANGER, _ = authority("Another", EARLIER)
INFO = b"role:master\r\nconnected_slaves:0\r\n"


class Server:
    """Answers PING, AUTH and INFO, and remembers what it was sent; with a certificate over TLS alone, as Redis does."""

    def __init__(self, directory: Path, names: tuple[str, ...] | None) -> None:
        self.heard = b""
        self._context: ssl.SSLContext | None = None
        if names:
            self.file = directory / "tls.pem"
            self.file.write_text("".join(make(start=EARLIER, names=names, issuer=ISSUER)))
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(self.file)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(connection):
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            while said := connection.recv(1000):
                self.heard += said
                if said == b"PING\r\n":
                    connection.sendall(b"-NOAUTH Authentication required.\r\n")
                elif b"INFO" in said:
                    connection.sendall(b"$%d\r\n%s\r\n" % (len(INFO), INFO))
                else:
                    connection.sendall(b"+OK\r\n")
            connection.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Server]:
    with contextlib.closing(Server(tmp_path, None)) as server:
        yield server


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Server]:
    with contextlib.closing(Server(tmp_path, ("127.0.0.1",))) as server:
        yield server


def believing(directory: Path, certificate: str = CA, plain_too: bool = False) -> redis_io.Tls | None:
    file = directory / f"ca-{hash(certificate)}.pem"
    file.write_text(certificate)
    return redis_io.tls_of(str(file), plain_too)


def ask(server: Server, tls: redis_io.Tls | None) -> plan.Node:
    return redis_io.ask({"name": "cache1", "address": "127.0.0.1"}, server.port, "admin", "secret", 1.0, tls)


def test_a_member_proves_its_address(secure: Server, tmp_path: Path) -> None:
    for plain_too in (False, True):
        assert ask(secure, believing(tmp_path, plain_too=plain_too)).is_master
    found = ask(secure, believing(tmp_path, STRANGER))
    assert (found.state, "certificate verify failed" in found.detail) == (plan.DENIED, True)
    other = Server(tmp_path, ("192.0.2.1",))
    found = ask(other, believing(tmp_path, plain_too=True))
    assert (found.state, "mismatch" in found.detail) == (plan.DENIED, True)
    assert b"secret" not in other.heard
    other.close()
    assert ask(secure, None).state == plan.UNREACHABLE


def test_who_speaks_no_tls_is_believed_only_while_it_is_turned_on(plain: Server, tmp_path: Path) -> None:
    assert ask(plain, believing(tmp_path, plain_too=True)).is_master
    plain.heard = b""
    assert ask(plain, believing(tmp_path)).state == plan.UNREACHABLE
    assert b"secret" not in plain.heard
    assert ask(plain, None).is_master


def test_no_password_is_sent_to_find_out(secure: Server, tmp_path: Path) -> None:
    """The first connection, without TLS, carries nothing that somebody between could use."""
    with socket.create_connection(("127.0.0.1", secure.port), timeout=1) as connection:
        assert not redis_io.speaks_plain(connection)
    assert ask(secure, believing(tmp_path, plain_too=True)).is_master


def test_without_the_file_there_is_no_tls_only_where_that_is_allowed(tmp_path: Path) -> None:
    assert redis_io.tls_of(None, plain_too=False) is None
    assert redis_io.tls_of(str(tmp_path / "none"), plain_too=True) is None
    with pytest.raises(OSError, match="No such file"):
        redis_io.tls_of(str(tmp_path / "none"), plain_too=False)


def test_a_new_certificate_in_the_file_is_noticed(secure: Server, tmp_path: Path) -> None:
    with redis_io.Client("127.0.0.1", secure.port, "admin", "secret", 1.0, believing(tmp_path)) as client:
        assert not redis_io.shows_another(client, str(secure.file))
        secure.file.write_text("".join(make(start=EARLIER, names=("127.0.0.1",), issuer=ISSUER)))
        assert redis_io.shows_another(client, str(secure.file))
        assert not redis_io.shows_another(client, None)
        assert not redis_io.shows_another(client, str(tmp_path / "none"))
