# SPDX-License-Identifier: GPL-3.0-or-later
"""When a balancer needs another certificate, and when the running HAProxy has to be told."""

from __future__ import annotations

import hashlib
import importlib.util
import ssl
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from render import ROOT

NOW = datetime(2030, 1, 31, tzinfo=UTC)
SERVER = "https://acme.example.com/directory"
NAMES = ["shop.example.org", "www.example.org"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("certificate", ROOT / "roles/haproxy/files/haproxy_certificate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def make(name: str, issuer: str, organization: str = "Let's Encrypt", authority: bool = True) -> str:
    def named(text: str) -> x509.Name:
        parts = [(NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, text)]
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])

    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


SITE, LINK, ROOT_CA = make("shop", "R3", authority=False), make("R3", "X1"), make("X1", "X1")
CROSS = make("R3", "X2")


def shown(own: str, *chain: tuple[str, str], organization: str = "Let's Encrypt") -> str:
    """As HAProxy 2.6 and 3.0 print it."""
    mark = hashlib.sha1(ssl.PEM_cert_to_DER_cert(own)).hexdigest().upper()
    lines = ["Filename: /etc/haproxy/certs/site.pem", "Status: Used", f"SHA1 FingerPrint: {mark}", "Subject: /CN=shop"]
    lines.append("Issuer: /O=Let's Encrypt/CN=R3")
    for subject, issuer in chain:
        lines += [f"Chain Subject: /O={organization}/CN={subject}", f"Chain Issuer: /O={organization}/CN={issuer}"]
    return "\n".join([*lines, "OCSP Response Key: ", ""])


@pytest.mark.parametrize(
    ("file", "answer", "expected"),
    [
        (SITE, shown(SITE), True),
        (SITE + LINK, shown(SITE, ("R3", "X1")), True),
        (SITE + LINK + ROOT_CA, shown(SITE, ("R3", "X1"), ("X1", "X1")), True),
        (LINK, shown(SITE), False),
        (SITE + LINK, shown(SITE), False),
        (SITE, shown(SITE, ("R3", "X1")), False),
        (SITE + CROSS, shown(SITE, ("R3", "X1")), False),
        (SITE + LINK + ROOT_CA, shown(SITE, ("X1", "X1"), ("R3", "X1")), False),
        (SITE, "Can't display the certificate: Not found or the certificate is a bundle!", False),
    ],
    ids=["alone", "chain", "long chain", "another", "chain missing", "chain too long", "cross-signed", "order", "none"],
)
def test_what_haproxy_serves(tool: ModuleType, file: str, answer: str, expected: bool) -> None:
    assert tool.is_served(file, answer) is expected


def test_letters_that_haproxy_writes_in_its_own_way_do_not_count(tool: ModuleType) -> None:
    link = make("R3", "X1", organization="Zertifikate für alle")
    assert tool.is_served(SITE + link, shown(SITE, ("R3", "X1"), organization="Zertifikate fÃ¼r alle"))


def test_an_empty_line_would_end_the_command_too_early(tool: ModuleType) -> None:
    line = tool.command("/x.pem", SITE + "\n \n" + LINK.replace("\n", "\r\n") + "\n\n")
    assert line == f"set ssl cert /x.pem <<\n{SITE}{LINK}\n"
    assert line.count("\n\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("global\n    tune.bufsize 32768\n", 32768), ("global\n    # tune.bufsize 9\n", 16384)]
)
def test_buffer_size(tool: ModuleType, text: str, expected: int) -> None:
    assert tool.buffer_size(text) == expected


def have(tool: ModuleType, **changed: Any) -> Any:
    values = {"names": frozenset(NAMES), "begins": NOW - timedelta(days=50), "ends": NOW + timedelta(days=40)}
    return tool.Certificate(**{**values, "server": SERVER, **changed})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"ends": NOW + timedelta(days=25)}, None),
        ({"ends": NOW + timedelta(days=24)}, "it ends on 2030-02-24: less than a third of its life is left"),
        ({"begins": NOW - timedelta(days=3), "ends": NOW + timedelta(days=3)}, None),
        ({"begins": NOW - timedelta(days=5), "ends": NOW + timedelta(days=1)}, "it ends on 2030-02-01"),
        ({"ends": NOW}, "it expired on 2030-01-31"),
        ({"names": frozenset(["shop.example.org"])}, "it is for shop.example.org, wanted shop.example.org, www."),
        ({"names": frozenset([*NAMES, "old.example.org"])}, "it is for old.example.org, shop."),
        ({"server": "https://staging.example.com/directory"}, "it is from https://staging.example.com/dir"),
        ({"server": ""}, "it is from an unknown server"),
    ],
)
def test_when_another_one_is_needed(tool: ModuleType, changed: dict[str, Any], expected: str | None) -> None:
    found = tool.why_renew(have(tool, **changed), NAMES, SERVER, NOW)
    assert found is None if expected is None else found.startswith(expected)


def test_names_are_compared_without_case_and_order(tool: ModuleType) -> None:
    assert tool.why_renew(have(tool), ["WWW.example.org", "shop.example.org"], SERVER, NOW) is None
    assert tool.why_renew(None, NAMES, SERVER, NOW) == "there is none yet"


def test_a_secret_file_is_replaced_as_a_whole(tool: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "site.pem"
    target.write_text("old")
    target.chmod(0o644)
    tool.replace(target, "new")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_what_certbot_is_told(tool: ModuleType) -> None:
    settings = {
        "directory_url": SERVER, "names": NAMES, "address": "192.0.2.7", "port": 8406, "key_type": "ecdsa", "email": "",
        "config_directory": "/c", "work_directory": "/w", "logs_directory": "/l",
    }  # fmt: skip
    line = " ".join(tool.certbot_command(settings))
    assert "--agree-tos" not in line
    assert "--agree-tos" in tool.certbot_command(settings | {"terms_agreed": True})
    assert "--server https://acme.example.com/directory" in line
    assert "--http-01-address 192.0.2.7 --http-01-port 8406" in line
    assert line.endswith("--register-unsafely-without-email -d shop.example.org -d www.example.org")
    assert "--email ops@example.org" in " ".join(tool.certbot_command(settings | {"email": "ops@example.org"}))
