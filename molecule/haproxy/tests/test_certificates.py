# SPDX-License-Identifier: GPL-3.0-or-later
"""Another certificate in the running balancer: no process ends, no connection is cut, a restart serves it as well."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancer import BALANCER, CONTEXT, DOMAIN, LAB, Load, admin, ask, converge, on

SITE = "/etc/haproxy/certs/site.pem"
LOAD = f"/usr/local/lib/flotilla/haproxy-certificate load {SITE}"


def make(directory: Path, links: int = 0) -> dict[str, str]:
    """A certificate for the site that nobody else signed, as the role's variables. More links make it long."""
    directory.mkdir(exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"]
    subprocess.run([*command, "-keyout", directory / "key", "-out", directory / "pem"], check=True, capture_output=True)
    CONTEXT.load_verify_locations(directory / "pem")
    certificate = (directory / "pem").read_text()
    return {"haproxy_tls_certificate": certificate * (1 + links), "haproxy_tls_key": (directory / "key").read_text()}


def fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END") + 26])).hexdigest()


def served() -> str:
    """Of the certificate that a new client is shown."""
    plain = socket.create_connection((BALANCER, 443), timeout=5)
    with plain, CONTEXT.wrap_socket(plain, server_hostname=DOMAIN) as secure:
        return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


def replace(pem: str) -> str:
    """The command that puts another text into the file and keeps the old one."""
    return f"cp -p {SITE} /root/keep; printf '%s' '{pem}' >{SITE}"


def worker() -> str:
    return next(line for line in admin("show info").splitlines() if line.startswith("Pid:"))


def changes(output: str) -> list[str]:
    task, found = "", []
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line[line.index("[") + 1 : line.rindex("]")].split(" : ")[-1]
        elif line.startswith("changed:"):
            found.append(task)
    return found


@pytest.fixture(autouse=True)
def own_certificate() -> Iterator[None]:
    yield
    converge()
    assert served() == fingerprint((LAB / "tls" / "flotilla.test.pem").read_text())


def test_a_changed_certificate_is_served_without_a_reload(tmp_path: Path) -> None:
    new = make(tmp_path)
    before = worker()
    with Load(rate=50).running() as load, Load(rate=50, keep=True).running() as keeping:
        predicted = converge(**new, check_mode=True)
        assert served() != fingerprint(new["haproxy_tls_certificate"])
        result = converge(**new)
    assert changes(predicted.stdout) == ["Write the configuration of HAProxy"]
    assert changes(result.stdout) == ["Write the configuration of HAProxy", "Serve the certificate"]
    assert load.failures == []
    assert keeping.failures == []
    assert len(load.answers) > 100
    assert served() == fingerprint(new["haproxy_tls_certificate"])
    assert worker() == before
    for line in new["haproxy_tls_key"].splitlines()[1:2]:
        assert line not in result.stdout + predicted.stdout
    assert changes(converge(**new).stdout) == []
    on("lb1", "systemctl restart haproxy")
    assert served() == fingerprint(new["haproxy_tls_certificate"])


def test_what_an_interrupted_run_or_an_operator_left_is_mended(tmp_path: Path) -> None:
    """The file is what counts; HAProxy is asked what it serves."""
    other = make(tmp_path)
    pem = "".join(other.values()).replace("\n\n", "\n")
    on("lb1", f"{replace(pem)}; {LOAD}")
    assert served() == fingerprint(pem)
    on("lb1", f"mv /root/keep {SITE}")
    before = worker()
    assert changes(converge().stdout) == ["Serve the certificate"]
    assert served() != fingerprint(pem)
    assert worker() == before


@pytest.mark.full
def test_a_chain_that_is_longer_than_a_command_may_be_is_reloaded(tmp_path: Path) -> None:
    new = make(tmp_path, links=30)
    assert len(new["haproxy_tls_certificate"]) > 16384
    before = worker()
    with Load(rate=30).running() as load:
        converge(**new)
    assert load.failures == []
    assert served() == fingerprint(new["haproxy_tls_certificate"])
    assert worker() != before
    assert changes(converge(**new).stdout) == []


def test_haproxy_refuses_what_the_file_should_not_hold(tmp_path: Path) -> None:
    """A last line of defence: the file was written by somebody else, and the key is that of another certificate."""
    first, second = make(tmp_path / "1"), make(tmp_path / "2")
    pem = first["haproxy_tls_certificate"] + second["haproxy_tls_key"]
    before = served()
    said = on("lb1", f"{replace(pem)}; {LOAD} 2>&1; echo status $?; mv /root/keep {SITE}")
    assert "HAProxy refused the certificate" in said
    assert "status 1" in said
    assert served() == before
    assert ask().status == 200
    assert "aborted" not in admin(f"show ssl cert {SITE}")
    assert second["haproxy_tls_key"].splitlines()[1] not in said


def test_without_a_certificate_the_site_is_on_http() -> None:
    converge(haproxy_tls_certificate="", haproxy_tls_key="")
    assert ask(tls=False).status == 200
    assert on("lb1", f"ls {SITE} /etc/haproxy/certs.list 2>/dev/null", check=False) == ""
