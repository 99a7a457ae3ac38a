# SPDX-License-Identifier: GPL-3.0-or-later
"""Whichever balancer waits for an ACME server's challenge is found, with the role's own configuration."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from haproxy_process import HAPROXY, free_port, wait_for
from render import render

BALANCERS = {"lb1": "127.0.0.1", "lb2": "127.0.0.2", "lb3": "127.0.0.3"}
PATH = "/.well-known/acme-challenge/token"


@contextmanager
def responder(address: str, port: int, token: str) -> Iterator[None]:
    """What certbot does while it waits for the server's request: it knows its own token only."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == f"/.well-known/acme-challenge/{token}"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(token.encode() if known else b"")

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def frozen(address: str, port: int) -> Iterator[None]:
    """A host whose kernel still accepts connections."""
    with socket.create_server((address, port)):
        yield


@pytest.fixture(scope="module")
def acme_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory, acme_port: int) -> Iterator[int]:
    """The port of a balancer that has the role's backend for challenges."""
    port, directory = free_port(), tmp_path_factory.mktemp("acme")
    text = render(
        "haproxy",
        "haproxy.cfg.j2",
        {
            "haproxy_acme_directory_url": "https://acme.example.com/directory",
            "haproxy_acme_port": acme_port,
            "haproxy_peers": [{"name": name, "address": address} for name, address in BALANCERS.items()],
        },
    )
    backend = text[text.index("\ndefaults acme") : text.index("\n# For the people who run this")]
    frontend = f"frontend http\n bind 127.0.0.1:{port}\n default_backend acme\n"
    (directory / "haproxy.cfg").write_text(f"defaults\n mode http\n timeout client 30s\n{frontend}{backend}\n")
    with subprocess.Popen([HAPROXY, "-db", "-f", str(directory / "haproxy.cfg")], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for("HAProxy listens", lambda: ask(port)[0])
            yield port
        finally:
            process.terminate()


def ask(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        connection.request("GET", PATH, headers={"Host": "www.example.com"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize("others", ["refuse", "know another", "are frozen"])
@pytest.mark.parametrize("name", BALANCERS)
def test_all_balancers_are_asked_until_one_knows(balancer: int, acme_port: int, name: str, others: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(responder(BALANCERS[name], acme_port, "token"))
        for other, address in BALANCERS.items():
            if other != name and others == "know another":
                stack.enter_context(responder(address, acme_port, f"token-of-{other}"))
            if other != name and others == "are frozen":
                stack.enter_context(frozen(address, acme_port))
        start = time.monotonic()
        # As often as there are balancers to begin with.
        tries = 1 if others == "are frozen" else len(BALANCERS)
        assert [ask(balancer) for _ in range(tries)] == [(200, "token")] * tries
        assert time.monotonic() - start < 8, "ACME servers wait for about ten seconds"


def test_nobody_knows(balancer: int) -> None:
    assert ask(balancer)[0] == 503
