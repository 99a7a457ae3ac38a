# SPDX-License-Identifier: GPL-3.0-or-later
"""certificates.yml: an authority and the site's certificate on the controller, which the checks of site.yml accept."""

from __future__ import annotations

import os
import re
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flotilla.django.plugins.filter import cluster as filters
from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster

ROOT = Path(__file__).resolve().parent.parent.parent
DOMAIN = "intranet.example.com"
PASSPHRASE = "correct horse battery"


def make(directory: Path, *options: str, **variables: Any) -> tuple[int, int, str]:
    """Runs the playbook: its status, how much it changed, and what it said."""
    hosts = {"lb1": {"ansible_host": "192.0.2.1"}, "lb2": {"ansible_host": "192.0.2.2"}}
    inventory = {"haproxy": {"hosts": hosts, "vars": {"cluster_domain": DOMAIN, **variables}}}
    (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(directory / "hosts.yml")]
    done = subprocess.run(
        [*command, "playbooks/certificates.yml", *options],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "true", "COLUMNS": "1000"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert PASSPHRASE not in done.stdout
    changed = re.search(r"changed=(\d+)", done.stdout)
    return done.returncode, int(changed[1]) if changed else 0, done.stdout


def problem(directory: Path) -> str | None:
    pem, key = ((directory / "ca" / f"{DOMAIN}.{part}").read_text() for part in ("pem", "key"))
    return cluster._certificate_problem(pem, key, DOMAIN, filters.read_certificate, datetime.now(UTC))


def test_the_authority_and_its_certificate(tmp_path: Path) -> None:
    settings = {"cluster_ca_passphrase": PASSPHRASE, "cluster_ca_names": ["old.example.com"]}
    status, changed, said = make(tmp_path, "--check", **settings)
    assert (status, changed) == (0, 1), said
    assert not (tmp_path / "ca").exists()
    status, changed, said = make(tmp_path, **settings)
    assert status == 0, said
    assert changed > 0
    assert make(tmp_path, **settings)[:2] == (0, 0), "a second run changes nothing"

    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()}
    pems = {"ca.pem": 0o644, f"{DOMAIN}.pem": 0o644, ".gitignore": 0o644}
    assert found == {"ca.key": 0o600, f"{DOMAIN}.key": 0o600, **pems}
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert "ENCRYPTED" in (tmp_path / "ca" / "ca.key").read_text()

    assert problem(tmp_path) is None
    # As strict as a browser.
    context = ssl.create_default_context(cafile=str(tmp_path / "ca" / "ca.pem"))
    assert len(context.get_ca_certs()) == 1
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "old.example.com"]
    command += ["-CAfile", str(tmp_path / "ca" / "ca.pem"), str(tmp_path / "ca" / f"{DOMAIN}.pem")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("OK\n")

    # Another name is another certificate, of the same authority and with the same key.
    authority, key = (tmp_path / "ca" / "ca.pem").read_text(), (tmp_path / "ca" / f"{DOMAIN}.key").read_text()
    assert make(tmp_path, cluster_ca_passphrase=PASSPHRASE)[:2] == (0, 1)
    assert (tmp_path / "ca" / "ca.pem").read_text() == authority
    assert (tmp_path / "ca" / f"{DOMAIN}.key").read_text() == key


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "cluster_ca_passphrase: is not set, wants at least 16 characters"),
        ({"cluster_ca_passphrase": "short"}, "cluster_ca_passphrase: is too short, wants at least 16"),
    ],
)
def test_no_authority_without_a_passphrase(tmp_path: Path, settings: dict[str, str], complaint: str) -> None:
    status, changed, said = make(tmp_path, **settings)
    assert status != 0
    assert changed == 0
    assert complaint in said
    assert not (tmp_path / "ca").exists()
