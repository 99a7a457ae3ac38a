# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates on the balancers: wrong ones are refused, others come without a reload, an ACME server's too."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import DOMAIN, Lab, Recap, broken, wait_until
from tests.load.load import running

BALANCERS = ("lb1", "lb2")
RATE = 50.0
MIX = {"plain": 4.0, "static": 1.0}
# The machine that belongs to no tier is the certificate authority.
AUTHORITY = "app4"
# How long pebble's certificates are good for, in seconds: a third of it is left after two minutes.
LIFE = 180
SETTINGS = "/etc/haproxy/acme.json"
TOOL = "/usr/local/lib/flotilla/haproxy-certificate"


def make(directory: Path, name: str = DOMAIN) -> dict[str, str]:
    """A certificate that nobody else signed, as the variables of the role."""
    directory.mkdir(exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command, "-keyout", directory / "key", "-out", directory / "pem"], check=True, capture_output=True)
    return {
        "haproxy_tls_certificate": (directory / "pem").read_text(),
        "haproxy_tls_key": (directory / "key").read_text(),
    }


def converge(lab: Lab, **variables: Any) -> Recap:
    """site.yml for the balancers alone."""
    run = lab.playbook("--limit", "haproxy", "--tags", "haproxy,firewall", "-e", json.dumps(variables))
    assert run.returncode == 0, run.output[-5000:]
    return run


def served(lab: Lab, name: str) -> str:
    """The fingerprint of what a balancer shows a new client."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection((lab.address(name), 443), timeout=10)
    with plain, context.wrap_socket(plain, server_hostname=DOMAIN) as secure:
        return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


def fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def processes(lab: Lab) -> dict[str, str]:
    """HAProxy's processes on the balancers: a reload starts a new one."""
    return {name: lab.ssh(name, "systemctl show -p MainPID haproxy; pgrep -x haproxy") for name in BALANCERS}


@pytest.fixture
def restored(lab: Lab) -> Iterator[None]:
    """In the end the balancers have the lab's own certificate again."""
    yield
    converge(lab)
    expected = fingerprint((lab.directory / "tls" / f"{DOMAIN}.pem").read_text())
    assert {served(lab, name) for name in BALANCERS} == {expected}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("other key", "haproxy_tls_key on lb1, lb2: does not belong to haproxy_tls_certificate"),
        pytest.param("other name", "haproxy_tls_certificate on lb1, lb2: is for other.test", marks=pytest.mark.full),
        pytest.param("chain", "certificate 1 is not signed by certificate 2", marks=pytest.mark.full),
        pytest.param("not pem", "haproxy_tls_certificate on lb1, lb2: cannot be read", marks=pytest.mark.full),
    ],
)
def test_a_wrong_certificate_is_refused_before_any_host_is_touched(
    lab: Lab, tmp_path: Path, kind: str, complaint: str
) -> None:
    wrong = make(tmp_path / "1", "other.test" if kind == "other name" else DOMAIN)
    other = make(tmp_path / "2")
    if kind == "other key":
        wrong["haproxy_tls_key"] = other["haproxy_tls_key"]
    elif kind == "chain":
        wrong["haproxy_tls_certificate"] += other["haproxy_tls_certificate"]
    elif kind == "not pem":
        wrong["haproxy_tls_certificate"] = "certificate"
    before = {name: served(lab, name) for name in BALANCERS}
    run = lab.playbook("--tags", "haproxy", "-e", json.dumps(wrong))
    assert run.returncode != 0
    assert complaint in " ".join(run.output.split())
    assert "no host was touched" in run.output
    assert run.changed == {}
    assert wrong["haproxy_tls_key"].splitlines()[1] not in run.output
    assert {name: served(lab, name) for name in BALANCERS} == before


@pytest.mark.full
def test_a_changed_certificate_comes_without_a_reload(lab: Lab, tmp_path: Path, restored: None) -> None:
    new = make(tmp_path)
    bundle = tmp_path / "both.pem"
    bundle.write_text(lab.certificate.read_text() + new["haproxy_tls_certificate"])
    before = processes(lab)
    with running(lab.load(rate=RATE, seconds=120, mix=MIX, deadline=8, ca=str(bundle))) as load:
        time.sleep(2)
        run = converge(lab, **new)
        time.sleep(2)
    assert load.report["failures"] == []
    assert load.report["ok"] > RATE
    assert set(run.changed) == set(BALANCERS), run.changed_tasks
    assert {served(lab, name) for name in BALANCERS} == {fingerprint(new["haproxy_tls_certificate"])}
    assert processes(lab) == before
    assert converge(lab, **new).changed == {}


# --- ACME ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pebble:
    """Debian's ACME test server on a host of the lab."""

    variables: dict[str, Any]
    roots: str


@pytest.fixture(scope="module")
def pebble(lab: Lab) -> Iterator[Pebble]:
    address = lab.address(AUTHORITY)
    settings = {
        "listenAddress": "0.0.0.0:14000",
        "managementListenAddress": "0.0.0.0:15000",
        "certificate": "/root/pebble/pem",
        "privateKey": "/root/pebble/key",
        "httpPort": 80,
        "tlsPort": 443,
        "certificateValidityPeriod": LIFE,
        "profiles": {"default": {"description": "The tests' own", "validityPeriod": LIFE}},
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    for name in BALANCERS:
        # An account that another pebble knew.
        lab.ssh(name, "rm -rf /var/lib/haproxy-acme")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pebble"
    lab.ssh(
        AUTHORITY,
        "set -e; umask 077; mkdir -p /root/pebble; cat > /root/pebble/config.json; "
        "command -v pebble > /dev/null || "
        "{ apt-get -qq update; apt-get -qq install --no-install-recommends pebble openssl; } > /dev/null 2>&1; "
        f"{request} -addext subjectAltName=IP:{address} -keyout /root/pebble/key -out /root/pebble/pem 2>/dev/null; "
        f"grep -q {DOMAIN} /etc/hosts || echo '{lab.shared_address()} {DOMAIN}' >> /etc/hosts; "
        "systemctl stop pebble 2>/dev/null || true; "
        "systemd-run --quiet --unit=pebble -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 "
        "pebble -config /root/pebble/config.json",
        stdin=json.dumps({"pebble": settings}),
    )
    own = lab.ssh(AUTHORITY, "cat /root/pebble/pem")
    context = ssl.create_default_context(cadata=own)

    def root() -> str:
        plain = socket.create_connection((address, 15000), timeout=5)
        with plain, context.wrap_socket(plain, server_hostname=address) as secure:
            secure.sendall(b"GET /roots/0 HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: secure.recv(65536), b"")).decode()
        return answer.split("\r\n\r\n", 1)[1]

    roots = wait_until(root, 20, "pebble answers")
    yield Pebble(
        {
            "haproxy_tls_certificate": "",
            "haproxy_tls_key": "",
            "haproxy_acme_directory_url": f"https://{address}:14000/dir",
            "haproxy_acme_terms_agreed": True,
            "haproxy_acme_ca_certificate": own,
        },
        roots,
    )
    converge(lab)
    expected = fingerprint((lab.directory / "tls" / f"{DOMAIN}.pem").read_text())
    assert {served(lab, name) for name in BALANCERS} == {expected}
    for name in BALANCERS:
        left = lab.ssh(name, "systemctl list-units --all --no-legend 'haproxy-acme*'; ls /etc/haproxy/certs")
        assert left.split() == ["site.pem"]
    assert converge(lab).changed == {}
    forget = f"sed '/{DOMAIN}/d' /etc/hosts > /root/hosts; cat /root/hosts > /etc/hosts; rm -r /root/hosts /root/pebble"
    lab.ssh(AUTHORITY, f"systemctl stop pebble; {forget}")


@pytest.fixture(scope="module")
def trusted(lab: Lab, pebble: Pebble, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a client trusts that is to believe the certificate before and the one of pebble."""
    bundle = tmp_path_factory.mktemp("trust") / "bundle.pem"
    bundle.write_text(lab.certificate.read_text() + pebble.roots)
    return str(bundle)


def issuer(lab: Lab, name: str) -> str:
    return lab.ssh(name, "openssl x509 -noout -issuer -in /etc/haproxy/certs/acme.pem").strip()


def renewed(lab: Lab, names: tuple[str, ...], before: dict[str, str], command: str) -> dict[str, str]:
    for name in names:
        lab.ssh(name, command)
    now = {name: served(lab, name) for name in BALANCERS if name in names}
    assert all(now[name] != before[name] for name in names), "the same certificate"
    return now


@pytest.mark.full  # six minutes beside other work: it runs site.yml four times
def test_the_first_certificate_and_its_renewal(lab: Lab, pebble: Pebble, trusted: str) -> None:
    with running(lab.load(rate=RATE, seconds=200, mix=MIX, deadline=8, ca=trusted)) as load:
        first = converge(lab, **pebble.variables)
        got = time.monotonic()
        time.sleep(1)
    assert load.report["failures"] == [], "the old certificate is shown until the new one is there"
    assert set(first.changed) == set(BALANCERS), first.changed_tasks
    assert all("Pebble" in issuer(lab, name) for name in BALANCERS)
    before = {name: served(lab, name) for name in BALANCERS}
    for name in BALANCERS:
        assert before[name] == fingerprint(lab.ssh(name, "openssl x509 -in /etc/haproxy/certs/acme.pem"))
        timer = lab.ssh(name, "systemctl is-active haproxy-acme.timer; systemctl is-enabled haproxy-acme.timer")
        assert timer.split() == ["active", "enabled"]
        lab.ssh(name, "systemctl start haproxy-acme.service")
    assert {name: served(lab, name) for name in BALANCERS} == before, "it is not time yet"

    # No controller from here on: what the timer starts.
    running_before = processes(lab)
    time.sleep(max(0.0, got + LIFE * 2 / 3 - time.monotonic()))
    with running(lab.load(rate=RATE, seconds=60, mix=MIX, deadline=8, ca=trusted)) as load:
        time.sleep(2)
        now = renewed(lab, BALANCERS, before, "systemctl start haproxy-acme.service")
        time.sleep(2)
    assert load.report["failures"] == []
    assert load.report["ok"] > RATE
    assert processes(lab) == running_before, "HAProxy was reloaded"
    again = converge(lab, **pebble.variables)
    assert again.changed == {}, again.changed_tasks

    # A restart serves it, too; and nobody else can read a key.
    lab.ssh("lb1", "systemctl restart haproxy")
    assert served(lab, "lb1") == now["lb1"]
    stat = "stat -c '%a %U' /etc/haproxy/certs /etc/haproxy/certs/acme.pem /var/lib/haproxy-acme"
    assert lab.ssh("lb1", stat).splitlines() == ["700 root", "600 root", "700 root"]


@pytest.mark.full
def test_a_balancer_alone_renews(lab: Lab, pebble: Pebble, trusted: str) -> None:
    """Whichever of the two is dead: the other one has the address, and asks its dead peer in vain."""
    converge(lab, **pebble.variables)
    shared = f" {lab.shared_address()}/"
    for dead, left in (BALANCERS, BALANCERS[::-1]):
        before = {name: served(lab, name) for name in BALANCERS}
        for how, back in ((("kill", dead), ("start", dead)), (("pause", dead), ("unpause", dead))):
            with broken(lab, how, back):
                wait_until(lambda name=left: shared in lab.ssh(name, "ip -o address"), 15, "the address moves")
                before |= renewed(lab, (left,), before, f"{TOOL} renew --force {SETTINGS}")
            wait_until(lambda name=dead: served(lab, name), 30, f"{dead} is back")


@pytest.mark.full
def test_a_certificate_that_cannot_be_got_leaves_everything_as_it_was(lab: Lab, pebble: Pebble) -> None:
    converge(lab, **pebble.variables)
    before = {name: served(lab, name) for name in BALANCERS}
    # The name leads elsewhere.
    elsewhere = f"cp /etc/hosts /root/hosts; sed 's/^[0-9.]* {DOMAIN}/127.0.0.1 {DOMAIN}/' /root/hosts > /etc/hosts"
    lab.ssh(AUTHORITY, elsewhere)
    try:
        said = lab.ssh("lb1", f"timeout 120 {TOOL} renew --force {SETTINGS} 2>&1; echo status $?")
    finally:
        lab.ssh(AUTHORITY, "cat /root/hosts > /etc/hosts")
    assert "status 1" in said
    assert "certbot got no certificate" in said
    assert {name: served(lab, name) for name in BALANCERS} == before
