# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy-certificate and a real HAProxy: what it serves is what the file holds, and it stays the same process."""

from __future__ import annotations

import hashlib
import importlib.util
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from haproxy_process import HAPROXY, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def make(directory: Path, name: str, issuer: str = "") -> None:
    """NAME.pem and NAME.key."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/O=Test/CN={name}")
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE") if issuer else ()
    if not issuer:
        openssl(directory, "req", "-x509", *curve, "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        return
    openssl(directory, "req", *curve, *extensions, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    signer = ("-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-copy_extensions", "copy", "-days", "2")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")


@dataclass
class Haproxy:
    directory: Path
    tool: Any
    port: int
    process: subprocess.Popen[bytes]

    @property
    def file(self) -> Path:
        return self.directory / "site.pem"

    def hold(self, *names: str) -> None:
        """What the file holds from now on."""
        self.file.write_text("".join((self.directory / name).read_text() for name in names))

    def load(self, check: bool = False) -> bool:
        changed: bool = self.tool.load(self.file, check)
        return changed

    def served(self) -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        with plain, context.wrap_socket(plain) as secure:
            return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()

    def serves(self, name: str) -> bool:
        pem = (self.directory / name).read_text()
        return self.served() == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


@pytest.fixture
def haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Haproxy]:
    spec = importlib.util.spec_from_file_location("tool", ROOT / "roles/haproxy/files/haproxy_certificate.py")
    assert spec and spec.loader
    tool: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tool", tool)
    spec.loader.exec_module(tool)
    port = free_port()
    monkeypatch.setattr(tool, "ADMIN_SOCKET", str(tmp_path / "admin"))
    monkeypatch.setattr(tool, "PATIENCE", 2.0)
    make(tmp_path, "root")
    make(tmp_path, "link", issuer="root")
    make(tmp_path, "site", issuer="link")
    make(tmp_path, "other")
    (tmp_path / "list").write_text(f"{tmp_path}/site.pem\n")
    (tmp_path / "haproxy.cfg").write_text(
        f"global\n stats socket {tmp_path}/admin level admin\n"
        "defaults\n mode http\n timeout client 5s\n timeout connect 5s\n timeout server 5s\n"
        f"frontend https\n bind 127.0.0.1:{port} ssl crt-list {tmp_path}/list\n"
    )
    (tmp_path / "site.crt").write_text((tmp_path / "site.pem").read_text())
    (tmp_path / "site.pem").write_text("".join((tmp_path / name).read_text() for name in ("site.crt", "site.key")))
    with subprocess.Popen([HAPROXY, "-db", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL) as process:
        wait_for("HAProxy runs", (tmp_path / "admin").exists)
        try:
            yield Haproxy(tmp_path, tool, port, process)
        finally:
            process.terminate()


def test_another_certificate(haproxy: Haproxy, capsys: pytest.CaptureFixture[str]) -> None:
    assert haproxy.load() is False
    haproxy.hold("other.pem", "other.key")
    assert haproxy.load(check=True) is True
    assert haproxy.serves("site.crt"), "check mode"
    assert haproxy.load() is True
    assert haproxy.serves("other.pem")
    assert haproxy.load() is False
    assert capsys.readouterr().out.splitlines() == [f"changed: HAProxy serves {haproxy.file}"] * 2


def test_another_chain_of_the_same_certificate(haproxy: Haproxy) -> None:
    for names in (["site.crt", "link.pem"], ["site.crt", "link.pem", "root.pem"], ["site.crt"]):
        haproxy.hold(*names, "site.key")
        assert haproxy.load() is True
        assert haproxy.load() is False
        assert haproxy.serves("site.crt")


def test_a_wrong_key_is_refused_and_leaves_nothing_behind(haproxy: Haproxy) -> None:
    haproxy.hold("other.pem", "site.key")
    with pytest.raises(haproxy.tool.Failed, match="HAProxy refused the certificate"):
        haproxy.load()
    assert haproxy.serves("site.crt")
    assert "*" not in haproxy.tool.ask("show ssl cert\n"), "an open transaction"
    haproxy.hold("other.pem", "other.key")
    assert haproxy.load() is True


def test_a_file_that_the_configuration_does_not_name(haproxy: Haproxy) -> None:
    stranger = haproxy.directory / "stranger.pem"
    stranger.write_text((haproxy.directory / "other.pem").read_text())
    with pytest.raises(haproxy.tool.Failed, match="its configuration does not name it"):
        haproxy.tool.load(stranger, False)


def test_no_haproxy(haproxy: Haproxy) -> None:
    haproxy.process.terminate()
    haproxy.process.wait()
    with pytest.raises(haproxy.tool.Failed, match="HAProxy does not answer"):
        haproxy.tool.ask("show info\n", patience=0.2)
