# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall: what every host can reach is what the matrix declares, and nobody is locked out, whatever happens."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import ROOT, Browser, Lab, Recap, wait_until

sys.path.insert(0, str(ROOT / "collections"))
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as plan

TABLE = "inet flotilla_firewall"
FILE = "/etc/flotilla/firewall.nft"
DROP_IN = "/etc/systemd/system/nftables.service.d/flotilla-firewall.conf"
SCAN = Path(__file__).with_name("scan.py")
# A host of no tier, and the machine that the lab runs on: it administers the hosts.
OUTSIDER = "app4"
MACHINE = "the machine"
# What somebody would try first, besides what anything listens on.
WELL_KNOWN = {
    *(20, 21, 22, 23, 25, 53, 80, 81, 88, 110, 111, 123, 135, 139, 143, 161, 179, 389, 443, 445, 465, 514, 587, 636),
    *(873, 993, 995, 1080, 1194, 1433, 1521, 1883, 2049, 2181, 2222, 2375, 2376, 2379, 2380, 3000, 3128, 3306, 3389),
    *(4369, 5000, 5044, 5353, 5355, 5432, 5433, 5601, 5672, 5900, 5984, 6000, 6379, 6380, 6432, 6443, 7000, 7001),
    *(8000, 8001, 8008, 8009, 8080, 8081, 8086, 8088, 8404, 8405, 8443, 8500, 8888, 9000, 9042, 9090, 9093, 9100, 9113),
    *(9115, 9121, 9187, 9200, 9256, 9300, 10000, 10050, 10250, 11211, 15672, 16379, 26379, 27017, 50000, 51820, 61616),
}


@cache
def tiers() -> dict[str, list[str]]:
    inventory = yaml.safe_load((ROOT / "inventories/lab/hosts.yml").read_text())
    return {tier: list(group["hosts"]) for tier, group in inventory["all"]["children"].items() if tier != "lab_spare"}


def members() -> list[str]:
    return [name for names in tiers().values() for name in names]


@pytest.fixture(scope="module")
def matrix(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """What each host lets in, and from which addresses."""
    topology = {
        tier: [{"name": name, "address": lab.address(name)} for name in names] for tier, names in tiers().items()
    }
    admin = lab.variable("lb1", "firewall_admin_networks")
    extra = {
        name: rules
        for names in tiers().values()
        for rules in [lab.variable(names[0], "firewall_extra_rules")]
        for name in names
    }
    ssh = {"name": "ssh", "ports": [22], "from": ["admin"]}
    variables = {"haproxy_tls_certificate": lab.certificate.read_text()}
    return {
        name: plan.resolve(
            [ssh, *extra[name], *plan.openings(name, tiers(), variables, [lab.shared_address()])],
            topology,
            admin,
        )
        for name in members()
    }


def machine_address(lab: Lab) -> str:
    return lab.shared_address().rsplit(".", 1)[0] + ".1"


def listening(lab: Lab) -> set[int]:
    """The ports at which anything listens on any host, also at addresses of its own alone."""
    lines = "".join(lab.ssh(name, "ss --no-header --tcp --listening --numeric") for name in members()).splitlines()
    return {int(line.split()[3].rsplit(":", 1)[1]) for line in lines}


def reached(lab: Lab, source: str, ports: set[int]) -> set[tuple[str, int]]:
    """To which ports of which other hosts the source can connect."""
    targets = {lab.address(name): name for name in members() if name != source}
    question = json.dumps({"targets": list(targets), "ports": sorted(ports), "seconds": 4})
    if source == MACHINE:
        command = [sys.executable, str(SCAN)]
        answer = subprocess.run(command, input=question, capture_output=True, text=True, check=True).stdout
    else:
        lab.ssh(source, "cat > /run/scan.py", SCAN.read_text())
        answer = lab.ssh(source, "python3 /run/scan.py && rm /run/scan.py", question)
    return {(targets[address], port) for address, port in json.loads(answer)}


def declared(lab: Lab, matrix: dict[str, list[dict[str, Any]]], source: str, ports: set[int]) -> set[tuple[str, int]]:
    address = machine_address(lab) if source == MACHINE else lab.address(source)
    return {
        (name, port)
        for name, rules in matrix.items()
        if name != source
        for port in ports
        if plan.admits(rules, address, port)
    }


@pytest.mark.parametrize(
    ("sources", "ports"),
    [
        pytest.param(("lb2", "app1", "cache1", "db2", "static1", OUTSIDER, MACHINE), set(), id="a host of each tier"),
        pytest.param((*members(), OUTSIDER, MACHINE), set(range(1, 10001)), marks=pytest.mark.full, id="every host"),
    ],
)
def test_a_scan_from_every_tier_equals_the_matrix(
    lab: Lab, matrix: dict[str, list[dict[str, Any]]], sources: tuple[str, ...], ports: set[int]
) -> None:
    ports = ports | WELL_KNOWN | listening(lab)
    more, less = {}, {}
    for source in sources:
        found, wanted = reached(lab, source, ports), declared(lab, matrix, source, ports)
        more[source], less[source] = sorted(found - wanted), sorted(wanted - found)
        assert wanted, source
    assert not any(more.values()), f"open, and not declared: {more}"
    assert not any(less.values()), f"declared, and not open: {less}"


def followed(lab: Lab, host: str, port: int) -> set[str]:
    """The connections to this port that the kernel of the host follows, as their addresses and ports."""
    ends = re.compile(r"(?:src|dst|sport|dport)=\S+")
    lines = lab.ssh(host, "cat /proc/net/nf_conntrack").splitlines()
    return {" ".join(ends.findall(line)[:4]) for line in lines if f" dport={port} " in line}


def test_requests_do_not_fill_the_tables_of_connections(lab: Lab) -> None:
    """What clients open is followed by the balancer's kernel; what it opens itself for each request is not."""
    watched = [("lb1", 8000), ("app1", 8000), ("lb1", 443)]
    before = {key: followed(lab, *key) for key in watched}
    for _ in range(10):
        assert Browser(lab, "lb1").get("/plain/").status_code == 200
    new = {key: followed(lab, *key) - before[key] for key in watched}
    assert len(new["lb1", 443]) >= 10, "nothing is followed at all"
    assert not new["lb1", 8000] | new["app1", 8000]


def test_only_balancers_take_part_in_sharing_the_address(lab: Lab) -> None:
    """A VRRP message of anybody else does not reach keepalived."""

    def dropped() -> int:
        words = lab.ssh("lb1", f"nft list chain {TABLE} input | grep dropped").split()
        return int(words[words.index("packets") + 1])

    send = (
        "import socket\n"
        "raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)\n"
        f"for _ in range(500): raw.sendto(bytes(20), ('{lab.address('lb1')}', 0))\n"
    )
    before = dropped()
    lab.ssh("app1", "python3 -", send)
    assert dropped() >= before + 500
    between = dropped()
    lab.ssh("lb2", "python3 -", send)
    assert dropped() < between + 500


def in_force(lab: Lab, host: str) -> str:
    """The table, or nothing, seen from the machine: that opens no SSH connection."""
    return inside(lab, host, f"nft --stateless list table {TABLE} 2>/dev/null || true")


def inside(lab: Lab, host: str, command: str) -> str:
    done = subprocess.run(
        ["podman", "exec", f"{lab.name}-{host}", "sh", "-c", command], capture_output=True, text=True, check=True
    )
    return done.stdout


def firewall(lab: Lab, host: str, *more: str, **variables: Any) -> Recap:
    arguments = ["--tags", "firewall", "--limit", host, *more]
    if variables:
        arguments += ["-e", json.dumps({f"firewall_{key}": value for key, value in variables.items()})]
    return lab.playbook(*arguments)


EXTRA = [{"name": "made by a test", "ports": [9], "from": ["any"]}]


@pytest.fixture
def host(lab: Lab) -> Iterator[str]:
    """A host whose firewall is as site.yml makes it, before and after."""
    name = "static2"
    before = in_force(lab, name)
    assert "policy drop" in before
    yield name
    if in_force(lab, name) != before:
        run = firewall(lab, name)
        assert run.returncode == 0, run.output[-3000:]
        assert in_force(lab, name) == before


def test_rules_that_lock_the_operator_out_are_refused(lab: Lab, host: str) -> None:
    rules, file = in_force(lab, host), lab.ssh(host, f"cat {FILE}")
    refused = firewall(lab, host, admin_networks=["203.0.113.0/24"], extra_rules=EXTRA)
    assert refused.returncode != 0
    said = " ".join(refused.output.split())
    assert f"firewall_admin_networks: got 203.0.113.0/24, wants {machine_address(lab)} among them" in said
    assert in_force(lab, host) == rules
    assert lab.ssh(host, f"cat {FILE}") == file


def test_check_mode_shows_the_difference_and_changes_nothing(lab: Lab, host: str) -> None:
    rules = in_force(lab, host)
    run = firewall(lab, host, "--check", "--diff", extra_rules=EXTRA)
    assert run.returncode == 0, run.output[-3000:]
    assert any(line.startswith("+") and 'comment "made by a test"' in line for line in run.output.splitlines())
    assert in_force(lab, host) == rules


@contextlib.contextmanager
def another_address(lab: Lab) -> Iterator[str]:
    """The machine has a second address in the lab's network, as an operator behind changing addresses."""
    address = machine_address(lab).rsplit(".", 1)[0] + ".254"
    bridge = subprocess.run(
        ["podman", "network", "inspect", f"flotilla-{lab.name}", "--format", "{{.NetworkInterface}}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", bridge], check=True)
    try:
        yield address
    finally:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", bridge], check=True)


def hang_up(lab: Lab, host: str) -> None:
    """End the shared SSH connection to the host, so that the next one is made anew."""
    path = f"/run/flotilla-lab/{lab.name}/{lab.address(host)}"
    subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={path}", "x"], capture_output=True, check=False)


ON_TRIAL = "systemctl is-active flotilla-firewall-rollback.timer || true"


@contextlib.contextmanager
def rules_that_cut(lab: Lab, host: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """A run arrives by an address that the new rules admit, and would have to come back by one that they do not."""
    with another_address(lab) as address:
        both = [machine_address(lab), address]
        assert firewall(lab, host, admin_networks=both).returncode == 0
        hang_up(lab, host)
        lab.ssh(host, "true")  # the connection that is open when the run begins
        # In one step: the first one of site.yml would leave the other address admitted, the last would see who comes.
        options = {"admin_networks": both[:1], "extra_rules": EXTRA, "trial_seconds": 8, "keep_open": False}
        yield ["-e", f"ansible_ssh_extra_args='-o BindAddress={address}'"], options
        hang_up(lab, host)


def test_rules_that_cut_the_connection_are_taken_back(lab: Lab, host: str) -> None:
    with rules_that_cut(lab, host) as (comes_from, options):
        before, file = in_force(lab, host), inside(lab, host, f"cat {FILE}")
        began = time.monotonic()
        cut = firewall(lab, host, *comes_from, **options)
        assert cut.returncode != 0
        assert "with the new rules no fresh connection came through within 8 seconds" in " ".join(cut.output.split())
        assert time.monotonic() - began > 8
        assert in_force(lab, host) == before
        assert inside(lab, host, f"cat {FILE}") == file


@pytest.mark.full
def test_a_host_takes_rules_that_cut_back_when_the_controller_has_died(lab: Lab, host: str) -> None:
    with rules_that_cut(lab, host) as (comes_from, options):
        before, file = in_force(lab, host), inside(lab, host, f"cat {FILE}")
        arguments = ["--tags", "firewall", "--limit", host, *comes_from]
        arguments += ["-e", json.dumps({f"firewall_{key}": value for key, value in options.items()})]
        with lab.background(*arguments, playbook="site.yml") as run:
            wait_until(lambda: "made by a test" in in_force(lab, host), 120, "the new rules are on trial", 0.1)
            assert inside(lab, host, ON_TRIAL).strip() == "active"
            run.kill()
        assert inside(lab, host, f"cat {FILE}") == file
        wait_until(lambda: in_force(lab, host) == before, 20, "the former rules are back")
    # The next run, from where it is admitted, finishes it.
    assert firewall(lab, host, extra_rules=EXTRA).returncode == 0
    assert "made by a test" in in_force(lab, host)
    assert inside(lab, host, ON_TRIAL).strip() == "inactive"
    assert "made by a test" in inside(lab, host, f"cat {FILE}")


@pytest.mark.full
def test_rules_stay_over_nftables_and_a_reboot_and_are_put_right(lab: Lab, host: str) -> None:
    before = in_force(lab, host)
    # Debian's own file, which begins by flushing everything.
    assert "flush ruleset" in lab.ssh(host, "cat /etc/nftables.conf")
    for command in ("start", "restart", "reload"):
        lab.ssh(host, f"systemctl {command} nftables.service")
        assert in_force(lab, host) == before, command
    assert "table inet filter" in lab.ssh(host, "nft list tables"), "the operator's own rules were loaded"
    lab.ssh(host, "nft delete table inet filter")

    lab.tool("kill", host)
    lab.tool("start", host)
    assert in_force(lab, host) == before
    assert lab.ssh(host, "systemctl is-active nftables.service", check=False).strip() == "inactive"

    lab.ssh(host, f"nft add rule {TABLE} openings tcp dport 9 accept; nft add table inet mine")
    run = firewall(lab, host)
    assert run.returncode == 0, run.output[-3000:]
    assert [task.split(" : ")[-1] for task in run.changed_tasks] == ["Put the rules in force"]
    assert in_force(lab, host) == before
    lab.ssh(host, f"nft delete table {TABLE}")
    assert firewall(lab, host).returncode == 0
    assert in_force(lab, host) == before
    assert "table inet mine" in lab.ssh(host, "nft list tables"), "nobody else's table is touched"
    lab.ssh(host, "nft delete table inet mine")

    for drift in ("systemctl disable --quiet flotilla-firewall.service", f"echo '# by hand' >> {FILE}", f"rm {FILE}"):
        lab.ssh(host, drift)
        run = firewall(lab, host)
        assert run.returncode == 0, run.output[-3000:]
        assert run.changed, drift
        again = firewall(lab, host)
        assert again.changed == {}, f"{drift}: {again.changed_tasks}"
    assert lab.ssh(host, "systemctl is-enabled flotilla-firewall.service").strip() == "enabled"
    assert "by hand" not in lab.ssh(host, f"cat {FILE}")


@pytest.mark.full
def test_it_can_be_turned_off_and_on(lab: Lab, host: str) -> None:
    off = firewall(lab, host, enabled=False)
    assert off.returncode == 0, off.output[-3000:]
    assert lab.ssh(host, "nft list tables") == ""
    assert (
        lab.ssh(host, f"ls {FILE} /etc/systemd/system/*firewall* /etc/systemd/system/*/*firewall*", check=False) == ""
    )
    again = firewall(lab, host, enabled=False)
    assert again.returncode == 0, again.output[-3000:]
    assert again.changed == {}, again.changed_tasks

    # One that was interrupted when the unit was gone and its other file and the rules were not.
    lab.ssh(host, f"mkdir -p {Path(DROP_IN).parent} && touch {DROP_IN} {FILE}")
    assert firewall(lab, host, enabled=False).changed
    assert lab.ssh(host, f"ls {DROP_IN} {FILE}", check=False) == ""

    assert firewall(lab, host).returncode == 0
    again = firewall(lab, host)
    assert again.returncode == 0, again.output[-3000:]
    assert again.changed == {}, again.changed_tasks
