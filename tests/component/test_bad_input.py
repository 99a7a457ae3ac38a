# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml refuses bad input before any host is touched. The way to the hosts is a program that counts its users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster

ROOT = Path(__file__).resolve().parent.parent.parent
SECRETS = {name: f"{name}-s3cret-0123" for name in cluster.SECRETS}
TIERS = {"haproxy": ["lb1"], "django": ["app1"], "postgresql": ["db1"], "redis": ["c1"], "nginx_static": ["s1"]}


@dataclass(frozen=True)
class Run:
    status: int
    output: str
    contacts: int


Site = Callable[..., Run]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Runs site.yml over five hosts that don't exist, with these changes to a good inventory."""
    contacts = tmp_path / "contacts"
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho contact >> {contacts}\nexit 255\n")
    ssh.chmod(0o755)
    project = tmp_path / "project"
    (project / "shop").mkdir(parents=True)
    (project / "manage.py").write_text('import os\nos.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")\n')
    (project / "shop" / "settings.py").write_text(
        "ROOT_URLCONF = 'shop.urls'\nWSGI_APPLICATION = 'shop.wsgi.application'\n"
    )
    (project / "shop" / "wsgi.py").write_text("application = None\n")
    (project / "requirements.txt").write_text("django==5.2.1\n")

    def run(
        variables: dict[str, Any] | None = None,
        tiers: dict[str, list[str]] | None = None,
        options: tuple[str, ...] = (),
        **by_host: dict[str, Any],
    ) -> Run:
        everywhere = {
            **SECRETS,
            "cluster_domain": "www.example.com",
            "django_project": str(project),
            **(variables or {}),
        }
        groups: dict[str, Any] = {}
        names = list(dict.fromkeys(name for group in TIERS.values() for name in group))
        for tier, members in (TIERS if tiers is None else tiers).items():
            groups[tier] = {"hosts": dict.fromkeys(members)}
        inventory = {
            "all": {
                "vars": {key: value for key, value in everywhere.items() if value is not None},
                "hosts": {
                    name: {"ansible_host": f"192.0.2.{number}", **by_host.get(name, {})}
                    for number, name in enumerate(names, 1)
                },
                "children": groups,
            }
        }
        path = tmp_path / "hosts.yml"
        path.write_text(yaml.safe_dump(inventory))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(path), "playbooks/site.yml", *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_SSH_EXECUTABLE": str(ssh),
                "ANSIBLE_NOCOLOR": "true",
                "COLUMNS": "1000",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        output = done.stdout + done.stderr
        for value in SECRETS.values():
            assert value not in output
        return Run(done.returncode, output, len(contacts.read_text().split()) if contacts.exists() else 0)

    return run


def test_a_good_inventory_gets_as_far_as_the_hosts(site: Site) -> None:
    """The control: without it the other tests would pass as well if no host were ever asked."""
    run = site()
    assert run.contacts > 0, run.output
    assert "The inventory has" not in run.output, run.output


def test_all_mistakes_at_once(site: Site) -> None:
    run = site(
        {"haproxy_balance": "random", "redis_admin_password": None, "haproxy_balanse": "x", "django_workers": "many"},
        app1={"haproxy_weight": 300},
        db1={"ansible_host": "192.0.2.1"},
        options=("-vvv",),
    )
    assert run.status != 0
    assert run.contacts == 0
    for message in (
        "The inventory has 6 mistakes",
        "\n        - haproxy_balance on lb1: got 'random', wants roundrobin or leastconn",
        "\n        - redis_admin_password on c1: is not set",
        "\n        - haproxy_weight on app1: got 300, wants a whole number from 1 to 256",
        "\n        - ansible_host on db1: got 192.0.2.1, which is the address of lb1",
        "did you mean haproxy_balance?",
        "\n        - django_workers on app1: ",
    ):
        assert message in run.output, run.output


def test_an_address_that_cannot_be_shared(site: Site) -> None:
    for value, message in (
        ("www.example.com", "got 'www.example.com', wants an IP address"),
        ("192.0.2.3", "got 192.0.2.3, which is the address of db1; wants one that no host has"),
    ):
        run = site({"haproxy_virtual_address": value, "keepalived_router_id": "0"})
        assert run.status != 0
        assert run.contacts == 0
        assert f"- haproxy_virtual_address on lb1: {message}" in " ".join(run.output.split()), run.output


def test_a_firewall_that_lets_nobody_in(site: Site) -> None:
    rules = [{"name": "x", "ports": ["http"], "from": ["any"]}]
    run = site({"firewall_enabled": True, "firewall_extra_rules": rules, "firewall_admin_network": ["192.0.2.0/24"]})
    assert run.status != 0
    assert run.contacts == 0
    said = " ".join(run.output.split())
    everywhere = "on lb1, app1, c1, db1, s1"
    assert "The inventory has 3 mistakes" in said, run.output
    assert f"- firewall_admin_networks {everywhere}: is not set although firewall_enabled is" in said, run.output
    assert f"- firewall_extra_rules {everywhere}: x: got the port 'http'" in said, run.output
    assert "did you mean firewall_admin_networks?" in said, run.output


def test_hosts_outside_the_limit_are_checked(site: Site) -> None:
    run = site(app1={"haproxy_weight": 0}, options=("--limit", "s1", "--tags", "nginx_static"))
    assert run.status != 0
    assert run.contacts == 0
    assert "haproxy_weight on app1: got 0" in run.output, run.output


@pytest.mark.parametrize("tiers", [{}, {tier: hosts for tier, hosts in TIERS.items() if tier != "redis"}])
def test_no_host_in_a_group(site: Site, tiers: dict[str, list[str]]) -> None:
    run = site(tiers=tiers)
    assert run.status != 0
    assert run.contacts == 0
    assert "group redis: has no host, needs at least one" in run.output, run.output


def test_a_certificate_that_is_not_there(site: Site) -> None:
    run = site(
        {"haproxy_tls_certificate": "{{ lookup('ansible.builtin.file', '/nonexistent.pem') }}", "haproxy_tls_key": "x"}
    )
    assert run.status != 0
    assert run.contacts == 0
    assert "haproxy_tls_certificate on lb1, app1, c1, db1, s1: cannot be evaluated: The lookup" in run.output, (
        run.output
    )
    assert "/nonexistent.pem" in run.output, run.output


def test_a_certificate_for_another_name(site: Site, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=www.example.com", "-addext", "subjectAltName=DNS:shop.example.com", "-days", "2"]
    subprocess.run([*command, "-keyout", tmp_path / "key", "-out", tmp_path / "pem"], check=True, capture_output=True)
    key = (tmp_path / "key").read_text()
    run = site(lb1={"haproxy_tls_certificate": (tmp_path / "pem").read_text(), "haproxy_tls_key": key})
    assert run.status != 0
    assert run.contacts == 0
    wanted = "haproxy_tls_certificate on lb1: is for shop.example.com, wants one for www.example.com"
    assert wanted in run.output, run.output
    assert key.splitlines()[1] not in run.output


def test_a_project_without_manage_py(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = site({"django_project": str(tmp_path / "empty")})
    assert run.status != 0
    assert run.contacts == 0
    assert "manage.py" in run.output, run.output
