#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts certificates into the running HAProxy without a reload, and gets them from an ACME server.

Usage: haproxy-certificate load [--check] FILE...
       haproxy-certificate renew [--check] [--force] CONFIGURATION

load: HAProxy is asked which certificate it serves from each FILE (PEM: certificate, chain, key). When that is another
one than the file holds, it is told the new one; connections and requests go on.
renew: gets a certificate with certbot when there is none yet, when it is for other names, of another server, or when
less than a third of its life is left (or with --force at once: others have seen its key). What certbot has is then put
into the file that HAProxy reads at its start, and loaded. Whatever an earlier run left undone is done.

Each change is one line on standard output that begins with `changed: `; with --check nothing is done. No secret is ever
printed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ADMIN_SOCKET = "/run/haproxy/admin.sock"
HAPROXY_CONFIG = Path("/etc/haproxy/haproxy.cfg")
# The name of the certificate in certbot's own directories.
LINEAGE = "site"
BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# HAProxy reads a command into one buffer, whose last KiB it keeps for itself.
RESERVED = 1024
# Seconds that a reload, or a restart, may take.
PATIENCE = 10.0


class Failed(Exception):
    """What an operator has to know."""


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """What there is to know of a certificate that certbot has."""

    names: frozenset[str]
    begins: datetime
    ends: datetime
    server: str


def encoded(pem: str) -> list[bytes]:
    """The certificates of a PEM text, the site's own first."""
    return [ssl.PEM_cert_to_DER_cert(block) for block in BLOCK.findall(pem)]


def is_served(pem: str, shown: str) -> bool:
    """Whether what HAProxy shows of a certificate is what a file holds, the chain included."""
    own, *chain = encoded(pem)
    found = re.search(r"^SHA1 FingerPrint: ([0-9A-F]+)$", shown, re.MULTILINE)
    if not found or found[1] != hashlib.sha1(own, usedforsecurity=False).hexdigest().upper():
        return False
    links = re.findall(r"^Chain Subject: (.*)\nChain Issuer: (.*)$", shown, re.MULTILINE)
    return len(links) == len(chain) and all(
        _matches(_names(item, part), text)
        for item, link in zip(chain, links, strict=True)
        for part, text in zip(("subject", "issuer"), link, strict=True)
    )


def _names(certificate: bytes, part: str) -> list[str]:
    """The values of the subject or issuer of a certificate authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate)
    return [value for item in context.get_ca_certs() for pairs in item.get(part, ()) for _, value in pairs]


def _matches(values: Sequence[str], shown: str) -> bool:
    # HAProxy writes letters beyond ASCII, and slashes, in ways of its own.
    return all(value in shown for value in values if value.isascii() and "/" not in value)


def command(path: str, pem: str) -> str:
    """The command that makes HAProxy read a certificate. An empty line would end it too early."""
    lines = [line.strip() for line in pem.splitlines() if line.strip()]
    return f"set ssl cert {path} <<\n" + "\n".join(lines) + "\n\n"


def buffer_size(configuration: str) -> int:
    found = re.search(r"^\s*tune\.bufsize\s+(\d+)", configuration, re.MULTILINE)
    return int(found[1]) if found else 16384


def why_renew(current: Certificate | None, names: Sequence[str], server: str, now: datetime) -> str | None:
    """Why another certificate is needed; None when it is not."""
    if current is None:
        return "there is none yet"
    if current.names != frozenset(name.lower() for name in names):
        return f"it is for {', '.join(sorted(current.names)) or 'no name'}, wanted {', '.join(names)}"
    if current.server != server:
        return f"it is from {current.server or 'an unknown server'}, wanted {server}"
    left, life = current.ends - now, current.ends - current.begins
    if left <= timedelta(0):
        return f"it expired on {current.ends:%Y-%m-%d}"
    if left < life / 3:
        return f"it ends on {current.ends:%Y-%m-%d}: less than a third of its life is left"
    return None


def certbot_command(settings: Mapping[str, Any]) -> list[str]:
    """No argument of it is secret."""
    arguments = ["certbot", "certonly", "--non-interactive", "--no-eff-email", "--force-renewal"]
    arguments += ["--agree-tos"] if settings.get("terms_agreed") else []
    for kind in ("config", "work", "logs"):
        arguments += [f"--{kind}-dir", str(settings[f"{kind}_directory"])]
    arguments += ["--server", settings["directory_url"], "--cert-name", LINEAGE, "--renew-with-new-domains"]
    arguments += ["--standalone", "--preferred-challenges", "http", "--key-type", settings["key_type"]]
    arguments += ["--http-01-address", settings["address"], "--http-01-port", str(settings["port"])]
    email = settings.get("email")
    arguments += ["--email", email] if email else ["--register-unsafely-without-email"]
    return arguments + [part for name in settings["names"] for part in ("-d", name)]


# --- HAProxy ---------------------------------------------------------------------------------------------------------


def ask(line: str, patience: float = PATIENCE) -> str:
    """HAProxy's answer. It may be restarting: a socket that is not there is tried again."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(ADMIN_SOCKET)
                connection.sendall(line.encode())
                answer = b""
                while part := connection.recv(65536):
                    answer += part
                return answer.decode(errors="replace").strip()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Failed(f"HAProxy does not answer at {ADMIN_SOCKET}: {error.strerror or error}") from error
            time.sleep(0.1)


def load(path: Path, check: bool) -> bool:
    """HAProxy serves what the file holds; whether it had to be told."""
    if check and not path.exists():
        print(f"changed: HAProxy serves {path}")
        return True
    pem = path.read_text()
    if not encoded(pem):
        raise Failed(f"{path} holds no certificate")
    told, deadline = False, time.monotonic() + PATIENCE
    while not is_served(pem, shown := ask(f"show ssl cert {path}\n")):
        if check:
            told = True
            break
        # A reload at the same moment: the old process may not know the file yet, the new one may have read it early.
        if time.monotonic() > deadline:
            known = "although it was told to" if told else "because its configuration does not name it"
            raise Failed(f"HAProxy does not serve what {path} holds, {known}")
        if "Filename:" in shown:
            tell(path, pem)
            told = True
        else:
            time.sleep(0.2)
    if told:
        print(f"changed: HAProxy serves {path}")
    return told


def tell(path: Path, pem: str) -> None:
    line = command(str(path), pem)
    try:
        configuration = HAPROXY_CONFIG.read_text()
    except OSError:
        configuration = ""
    if len(line) > buffer_size(configuration) - RESERVED:
        # Longer than any real chain. A reload loses no request either, it only starts new processes.
        subprocess.run(["systemctl", "reload", "haproxy.service"], check=True, capture_output=True)
        time.sleep(1)
        return
    # "Transaction created" or, when somebody has left one behind, "updated". A wrong key is found by either command.
    answer = ask(line)
    if "Transaction" in answer:
        answer = ask(f"commit ssl cert {path}\n")
    if "Success" not in answer:
        ask(f"abort ssl cert {path}\n")
        raise Failed(f"HAProxy refused the certificate of {path}: {' '.join(answer.split())}")


# --- ACME ------------------------------------------------------------------------------------------------------------


def read_current(directory: Path) -> Certificate | None:
    """What certbot has; None when that is nothing, or nothing that can be read."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate((directory / "live" / LINEAGE / "cert.pem").read_bytes())
        renewal = (directory / "renewal" / f"{LINEAGE}.conf").read_text()
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return None
    server = re.search(r"^server = (\S+)$", renewal, re.MULTILINE)

    def moment(name: str) -> datetime:
        # Debian 12's library knows the time without a zone only.
        value: datetime = getattr(found, f"{name}_utc", None) or getattr(found, name)
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    return Certificate(
        frozenset(name.lower() for name in alternatives.get_values_for_type(x509.DNSName)),
        moment("not_valid_before"),
        moment("not_valid_after"),
        server[1] if server else "",
    )


def wait_for_door(doors: Sequence[Sequence[Any]], patience: float = 30.0) -> None:
    """Until each address accepts connections: a shared one takes seconds to come, and failures count at the server."""
    deadline = time.monotonic() + patience
    for address, port in doors:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=2):
                break
            time.sleep(0.2)


def get(settings: Mapping[str, Any]) -> None:
    """Let certbot get a certificate."""
    wait_for_door(settings.get("doors", ()))
    environment = dict(os.environ)
    if settings.get("ca_file"):
        environment["REQUESTS_CA_BUNDLE"] = settings["ca_file"]
    command_line = certbot_command(settings)
    done = subprocess.run(
        command_line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"certbot got no certificate from {settings['directory_url']}:\n{done.stdout}{done.stderr}")


def adopt(directory: Path, target: Path, check: bool) -> bool:
    """Put certbot's certificate and key into the file that HAProxy reads; whether that changed it."""
    live = directory / "live" / LINEAGE
    pem = (live / "fullchain.pem").read_text().rstrip() + "\n" + (live / "privkey.pem").read_text().rstrip() + "\n"
    if target.exists() and target.read_text() == pem:
        return False
    if not check:
        replace(target, pem)
    print(f"changed: {target} holds the new certificate")
    return True


def replace(path: Path, text: str) -> None:
    """A secret file: complete or not at all, and never readable for others."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as new:
        try:
            os.fchmod(new.fileno(), 0o600)
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink()
            raise


def renew(path: Path, check: bool, force: bool) -> None:
    with path.open() as configuration:
        # The timer and an operator at the same time.
        fcntl.flock(configuration, fcntl.LOCK_EX)
        settings = json.load(configuration)
        directory = Path(settings["config_directory"])
        reason = why_renew(read_current(directory), settings["names"], settings["directory_url"], datetime.now(UTC))
        if force and not reason:
            reason = "it was asked for"
        if reason:
            print(f"changed: a certificate from {settings['directory_url']}: {reason}")
            if check:
                return
            get(settings)
        target = Path(settings["certificate"])
        adopt(directory, target, check)
        load(target, check)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="haproxy-certificate")
    parser.add_argument("action", choices=["load", "renew"])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("paths", nargs="+", type=Path)
    wanted = parser.parse_args(arguments)
    try:
        for path in wanted.paths:
            if wanted.action == "load":
                load(path, wanted.check)
            else:
                renew(path, wanted.check, wanted.force)
    except Failed as error:
        print(f"haproxy-certificate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"haproxy-certificate: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
