# SPDX-License-Identifier: GPL-3.0-or-later
"""How the time of the playbooks grows with the cluster: site.yml that changes nothing, status.yml and deploy.yml.

One lab grows: a host of each other tier and more and more Django nodes, each with one small worker. The hosts share the
machine that runs the playbooks, so what is measured is the work of all of them, too, which in real life is theirs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.deploys import Add, written
from tests.cluster import ROOT, Lab

SIZES = (5, 10, 20, 30)
# 30 hosts may take so many times what 10 take.
LIMIT = 2.0
# A quarter of the nodes at a time, as other tools do by default: a batch of one would make a deploy as long as the
# cluster is large, whatever it costs.
BATCH = "25%"
LIGHT = {"django_workers": 1, "django_threads": 2, "django_processes": []}


@dataclass(frozen=True)
class Grown:
    """The seconds that each playbook took on so many hosts."""

    hosts: int
    site: float
    status: float
    deploy: float


def inventory_of(hosts: int) -> Path:
    """One host of each other tier, without a monitor, and the rest Django nodes."""
    inventory = yaml.safe_load((ROOT / "inventories/lab/hosts.yml").read_text())
    tiers: dict[str, dict[str, Any]] = inventory["all"]["children"]
    for name in ("lab_spare", "prometheus"):
        tiers.pop(name)
    others = [name for name in tiers if name != "django"]
    for name in others:
        tiers[name]["hosts"] = dict(list(tiers[name]["hosts"].items())[:1])
    nodes = hosts - len(others)
    tiers["django"] = {
        "hosts": {f"app{number}": {"lab_address_suffix": 100 + number} for number in range(1, nodes + 1)},
        "vars": LIGHT,
    }
    return written(f"growth-{hosts}", inventory)


def timed(lab: Lab, playbook: str, *arguments: str, unchanged: bool = False) -> float:
    began = time.monotonic()
    done = lab.playbook(*arguments, playbook=playbook)
    took = time.monotonic() - began
    if done.returncode or (unchanged and done.changed):
        raise SystemExit(f"{playbook} ended with {done.returncode}, changed {done.changed}:\n{done.output[-6000:]}")
    return took


def measure(name: str, hosts: int) -> Grown:
    lab = Lab(name, str(inventory_of(hosts)))
    lab.environment["LAB_IMAGE"] = "warm"
    lab.tool("up")
    timed(lab, "site.yml")
    site = statistics.median(timed(lab, "site.yml", unchanged=True) for _ in range(3))
    status = statistics.median(timed(lab, "playbooks/status.yml", unchanged=True) for _ in range(3))
    deploy = timed(lab, "playbooks/deploy.yml", "-e", f"django_version=growth-{hosts}", "-e", f"deploy_batch={BATCH}")
    return Grown(hosts, site, status, deploy)


def growth(name: str, add: Add, sizes: Sequence[int] = SIZES) -> None:
    lab = Lab(f"{name}-growth", str(inventory_of(max(sizes))))
    lab.tool("down")
    found: list[Grown] = []
    print(
        f"\n{'hosts':>5}{'site.yml again':>16}{'status.yml':>12}{'deploy.yml':>12}   ({BATCH} of the nodes at a time)"
    )
    try:
        for hosts in sizes:
            row = measure(lab.name, hosts)
            found.append(row)
            print(f"{hosts:>5}{row.site:>14.1f} s{row.status:>10.1f} s{row.deploy:>10.1f} s", flush=True)
    finally:
        lab.tool("down")
    ten, most = next(row for row in found if row.hosts == 10), found[-1]
    for what in ("site", "status", "deploy"):
        small, large = getattr(ten, what), getattr(most, what)
        more = (large - small) / (most.hosts - ten.hosts)
        print(f"{what}.yml: {more:.2f} s for a further host")
        add(f"{what}.yml on {most.hosts} hosts, in its time on {ten.hosts}", f"{large:.1f} s / {small:.1f} s",
            f"{large / small:.2f}", large / small <= LIMIT)  # fmt: skip
