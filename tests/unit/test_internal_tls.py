# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS between the tiers: what the roles write when it is on, and what gunicorn's settings do with a connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from render import evaluate, render
from test_cluster_plan import authority, make

PEMS = {"certificate": "certificate", "key": "key", "ca": "authority"}
DATABASE = {f"postgresql_tls_{part}": text for part, text in PEMS.items()}
NODE = {f"django_tls_{part}": text for part, text in PEMS.items()}


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
def test_nobody_reaches_a_database_without_tls(topology: str) -> None:
    rules = render("postgresql", "pg_hba.conf.j2", DATABASE, topology=topology)
    kinds = {line.split()[0] for line in rules.splitlines() if line and not line.startswith("#")}
    assert kinds == {"local", "hostssl"}
    assert "hostssl" not in render("postgresql", "pg_hba.conf.j2", topology=topology)


def test_a_member_serves_its_own_certificate() -> None:
    text = render("postgresql", "flotilla.conf.j2", DATABASE)
    assert "ssl_cert_file = '/etc/postgresql/17/main/server.pem'" in text
    assert "ssl_key_file = '/etc/postgresql/17/main/server.key'" in text
    assert "sslmode=''verify-full'' sslrootcert=''/etc/postgresql/17/main/ca.pem''" in text
    assert "ssl-cert-snakeoil" in render("postgresql", "flotilla.conf.j2")


def test_django_believes_only_a_verified_database() -> None:
    text = render("django", "environment.j2", {"django_database_tls_ca": "authority"})
    for line in (
        'CLUSTER_DATABASE_SSLMODE="verify-full"',
        'CLUSTER_DATABASE_SSLROOTCERT="/etc/django/database-ca.pem"',
        'PGSSLMODE="verify-full"',
        'PGSSLROOTCERT="/etc/django/database-ca.pem"',
    ):
        assert f"\n{line}\n" in text
    assert "read-write&sslmode=verify-full&sslrootcert=/etc/django/database-ca.pem" in text
    assert "SSL" not in render("django", "environment.j2")


def test_django_believes_only_a_verified_redis() -> None:
    text = render("django", "environment.j2", {"django_redis_tls_ca": "authority"})
    assert '\nCLUSTER_REDIS_CA="/etc/django/redis-ca.pem"\n' in text
    assert '\nREDIS_URL="rediss://' in text
    assert "/0?ssl_cert_reqs=required&ssl_check_hostname=true&ssl_ca_certs=/etc/django/redis-ca.pem" in text
    assert '\nREDIS_URL="redis://' in render("django", "environment.j2")
    assert "REDIS_CA" not in render("django", "environment.j2")


def test_the_exporter_and_the_monitor_ask_redis_over_tls() -> None:
    command = "(__exporters_all | selectattr('name', 'equalto', 'redis') | first)['command']"
    asked = evaluate("exporters", command, {"exporters_redis_tls_ca": "authority"})
    assert "--redis.addr=rediss://" in asked
    assert "--tls-ca-cert-file=/etc/flotilla/redis-ca.pem" in asked
    assert "tls" not in evaluate("exporters", command)
    assert "'rediss://" in render("prometheus", "prometheus.yml.j2", {"prometheus_redis_server_tls": True})
    assert "'redis://" in render("prometheus", "prometheus.yml.j2")


def test_the_monitor_verifies_the_nodes() -> None:
    told = {"prometheus_django_tls_ca": "authority"}
    node = yaml.safe_load(render("prometheus", "blackbox.yml.j2", told))["modules"]["node"]["http"]
    assert node["tls_config"] == {"ca_file": "/etc/prometheus/flotilla-django-ca.pem"}
    assert "Host" not in node["headers"], "the exporter would look for that name in the certificate"
    plain = yaml.safe_load(render("prometheus", "blackbox.yml.j2"))["modules"]["node"]["http"]
    assert (plain["headers"]["Host"], "tls_config" in plain) == ("shop.example.org", False)
    assert ":8000/-/health" in render("prometheus", "prometheus.yml.j2", told)
    assert "'https://" in render("prometheus", "prometheus.yml.j2", told)


REQUEST = b"GET / HTTP/1.1\r\n\r\n"


class Node:
    """gunicorn's settings, and a server that treats a connection as gunicorn does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        text = render("django", "gunicorn.conf.py.j2", NODE).replace("/etc/django", str(directory))
        self.settings: dict[str, Any] = {}
        exec(compile(text, "gunicorn.conf.py", "exec"), self.settings)

    def certify(self, issuer: Any) -> None:
        fresh = self.directory / "fresh"
        fresh.write_text("".join(make(names=("localhost", "127.0.0.1"), issuer=issuer)))
        fresh.replace(self.directory / "tls.pem")

    def _factory(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.settings["certfile"], self.settings["keyfile"])
        return context

    def serve_one(self) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            connection, _ = listener.accept()
            listener.close()
            try:
                # As gunicorn's gthread worker does it.
                early = self.settings.get("do_handshake_on_connect", False)
                context = self.settings["ssl_context"](None, self._factory)
                wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=early)
                if not early:
                    wrapped.do_handshake()
                wrapped.sendall(wrapped.recv(100))
                wrapped.close()
            except (AttributeError, OSError):
                connection.close()

        threading.Thread(target=run, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def ask(self, context: ssl.SSLContext | None) -> bytes:
        with socket.create_connection(("127.0.0.1", self.serve_one()), timeout=5) as plain:
            if context is None:
                plain.sendall(REQUEST)
                with contextlib.suppress(ConnectionError):
                    return plain.recv(100)
                return b""
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(REQUEST)
                return secure.recv(100)


def test_a_node_speaks_plain_only_while_it_is_told_to(tmp_path: Path) -> None:
    _, issuer = authority("Authority")
    stranger = ssl.create_default_context(cadata=authority("Authority")[0])
    node = Node(tmp_path)
    node.certify(issuer)
    served: list[bytes] = []
    with pytest.raises(ssl.SSLCertVerificationError):
        node.ask(stranger)
    assert node.ask(None) != REQUEST
    (tmp_path / "plain-too").touch()
    assert node.ask(None) == REQUEST
    (tmp_path / "plain-too").unlink()
    assert node.ask(None) != REQUEST
    for _ in range(2):  # the second time with a new certificate, without a restart
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        secure.check_hostname = False
        secure.verify_mode = ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", node.serve_one()), timeout=5)
        with secure.wrap_socket(plain) as connection:
            served.append(connection.getpeercert(binary_form=True) or b"")
            connection.sendall(REQUEST)
            assert connection.recv(100) == REQUEST
        node.certify(issuer)
    assert served[0] != served[1]
