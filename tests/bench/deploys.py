# SPDX-License-Identifier: GPL-3.0-or-later
"""Four ways to bring the same release to the same cluster under the same load, and what a node more costs.

Every way is one playbook: the release is built, brought to all hosts and migrated by the same steps (deploy_stage.yml;
in deploy.yml they are its own), which find everything done because it was staged beforehand, and then the nodes are
switched. So the playbooks differ in the switch, and in what deploy.yml does around it (lock, preflight, audit).
"""

from __future__ import annotations

import csv
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ROOT, Browser, Lab, wait_until
from tests.load.load import latencies, running

# name of the figure, the figures, their ratio, whether it is good
Add = Callable[[str, str, str, bool], None]

BALANCERS = ["lb1", "lb2"]
NODES = ["app1", "app2", "app3"]
VERSION = "bench"
MIX = {"plain": 6, "page": 3, "session": 3, "post": 2, "static": 2, "slow": 1}
SLOW_SECONDS = 3.0
# Before the playbook begins, for comparison, and after its end, when what it did may still be felt.
BEFORE, AFTER = 5.0, 5.0
# What HAProxy counts and clients do not see, or see as an error.
COUNTERS = ["econ", "eresp", "wretr", "wredis", "hrsp_5xx"]
# Seconds that a node may cost when no slow request is in flight.
NODE_LIMIT = 8.0


@dataclass(frozen=True)
class Method:
    """A way to deploy, and between which lines of its output the nodes are switched."""

    name: str
    playbook: str
    begin: str = "PLAY [Switch]"
    end: str = "PLAY RECAP"


OURS = Method("d. deploy.yml", "playbooks/deploy.yml", "TASK [Switch a batch]", "TASK [Write the audit line]")
COMMUNITY = Method("c. community.general.haproxy", "tests/bench/deploy_community.yml")
QUICK = [
    Method("a. restart of all at once", "tests/bench/deploy_restart.yml"),
    Method("b. HUP one after another", "tests/bench/deploy_hup.yml"),
]


@dataclass
class Played:
    """A run of a playbook: its lines with the seconds since its begin."""

    began: float
    returncode: int = 0
    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def span(self, begin: str, end: str) -> tuple[float, float]:
        """From the first line that begins like this to the first one after it that begins like that."""
        first = next((at for at, line in self.lines if line.startswith(begin)), None)
        if first is None:
            raise SystemExit(f"no line {begin!r} in:\n{self.output[-4000:]}")
        return first, next((at for at, line in self.lines if at > first and line.startswith(end)), self.seconds)


@dataclass(frozen=True)
class Row:
    """What one way to deploy did."""

    method: Method
    sent: int
    reasons: dict[str, int]
    before: dict[str, float]
    during: dict[str, float]
    switch: float
    soak: float  # of that, for nothing but watching
    whole: float
    runs: list[str]  # the releases that the nodes' workers say they run, when all is over
    counted: dict[str, Counter[str]]  # by balancer

    @property
    def failed(self) -> int:
        return sum(self.reasons.values())

    @property
    def retries(self) -> int:
        """What HAProxy tried again: failures that it hid from the clients."""
        return sum(count for found in self.counted.values() for name, count in found.items() if _is_retry(name))


def _is_retry(name: str) -> bool:
    return name.endswith("/BACKEND/wretr")


def play(lab: Lab, playbook: str, *arguments: str, inventory: Path | None = None) -> Played:
    """Run a playbook, and note when each line came. It must succeed."""
    command = [
        str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(inventory or lab.inventory), playbook, *arguments
    ]  # fmt: skip
    # Else the name of a task comes with its first result, not at its begin.
    environment = {**lab.environment, "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true", "PYTHONUNBUFFERED": "1"}
    print(f"{playbook} {' '.join(arguments)} ...", file=sys.stderr, flush=True)
    played, clock = Played(time.time()), time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            played.lines.append((time.monotonic() - clock, line.rstrip()))
    played.seconds, played.returncode = time.monotonic() - clock, process.returncode
    if played.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {played.returncode}:\n{played.output[-6000:]}")
    return played


def parse_statistics(text: str) -> list[dict[str, str]]:
    """The rows of HAProxy's `show stat`, by the names of its head."""
    return list(csv.DictReader(text.strip().removeprefix("# ").splitlines()))


def statistics_of(lab: Lab, balancer: str) -> list[dict[str, str]]:
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        " s.sendall(b'show stat\\n'); print(s.makefile().read())"
    )
    rows = parse_statistics(lab.ssh(balancer, "python3 -", program))
    return [row for row in rows if row["pxname"] in ("django", "nginx_static")]


def counters(rows: Sequence[dict[str, str]]) -> Counter[str]:
    """{backend/server/counter: count}; BACKEND has the sum of its servers, and what no server was to blame for."""
    return Counter(
        {f"{row['pxname']}/{row['svname']}/{name}": int(row[name] or 0) for row in rows for name in COUNTERS}
    )


def in_service(lab: Lab) -> bool:
    """Whether every balancer has every node up and ready."""
    for balancer in BALANCERS:
        rows = {row["svname"]: row for row in statistics_of(lab, balancer) if row["pxname"] == "django"}
        if not all(rows[node]["status"] == "UP" for node in NODES):
            return False
    return True


def answering(lab: Lab, node: str) -> set[str]:
    """The releases that the workers of a node say they run: each connection may meet another worker."""
    browsers = [Browser(lab, node, 8000) for _ in range(12)]
    return {str(browser.get("/-/health").json()["release"]) for browser in browsers}


def running_releases(lab: Lab) -> list[str]:
    return sorted({release for node in NODES for release in answering(lab, node)})


def settled(lab: Lab) -> str:
    """The release that the inventory wants, on all nodes: a run before this one may have broken off."""
    found = running_releases(lab)
    if len(found) != 1 or found[0].startswith(f"{VERSION}-") or not in_service(lab):
        play(lab, "site.yml")
        found = running_releases(lab)
    (release,) = found
    return release


def restore(lab: Lab, release: str) -> None:
    """All nodes on this release and in service on both balancers, in the quickest way: no load is on."""
    subprocess.run(
        [str(ROOT / ".venv/bin/ansible"), "-i", str(lab.inventory), "django", "-m", "ansible.builtin.shell",
         "-a", f"ln -sfn releases/{release} /srv/django/current && systemctl restart django"],
        cwd=ROOT, env=lab.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wait_until(lambda: running_releases(lab) == [release], 60, f"all nodes run {release}")
    wait_until(lambda: in_service(lab), 60, "all nodes are in service on both balancers")


def measure(lab: Lab, method: Method, user: str, rate: float) -> Row:
    """Deploy in this way under load."""
    before = {balancer: counters(statistics_of(lab, balancer)) for balancer in BALANCERS}
    with running(lab.load(user, rate=rate, seconds=600, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        time.sleep(BEFORE)
        played = play(lab, method.playbook, "-e", f"django_version={VERSION}")
        time.sleep(AFTER)
    begin, end = played.span(method.begin, method.end)
    offset = played.began - load.report["started"]
    fast = [outcome for outcome in load.outcomes if outcome.kind != "slow"]
    counted = {}
    for balancer in BALANCERS:
        counted[balancer] = counters(statistics_of(lab, balancer))
        counted[balancer].subtract(before[balancer])
    return Row(
        method=method,
        sent=load.report["sent"],
        reasons=_reasons(load.report),
        before=latencies([outcome for outcome in fast if outcome.due < offset]),
        during=latencies([outcome for outcome in fast if offset + begin <= outcome.due < offset + end + AFTER]),
        switch=end - begin,
        soak=soaked(parts_of(played)) if method is OURS else 0.0,
        whole=played.seconds,
        runs=running_releases(lab),
        counted=counted,
    )


def _reasons(report: dict[str, Any]) -> dict[str, int]:
    """{reason: count}, with the status where there is one: "status" alone does not tell a 502 from a 404."""
    found: Counter[str] = Counter()
    for failure in report["failures"]:
        found[f"{failure['status']}" if failure["reason"] == "status" else failure["reason"]] += 1
    unlisted = report["failed"] - sum(found.values())
    return {**found, **({"not listed": unlisted} if unlisted else {})}


def print_table(rows: Sequence[Row]) -> None:
    print(f"\n{len(NODES)} nodes, the fast requests' latency while the nodes are switched and {AFTER:.0f} s on:")
    head = f"{'':<29}{'sent':>6}{'failed':>8}{'p50':>8}{'p99':>9}{'(before)':>10}{'switch':>9}{'a node':>8}{'whole':>8}"
    print(head + "  failures; what HAProxy tried again unseen; what runs")
    for row in rows:
        figures = f"{row.method.name:<29}{row.sent:>6}{row.failed:>8}{row.during['p50_ms']:>5.0f} ms"
        figures += f"{row.during['p99_ms']:>6.0f} ms{row.before['p99_ms']:>7.0f} ms{row.switch:>7.1f} s"
        figures += f"{row.switch / len(NODES):>6.1f} s{row.whole:>6.1f} s"
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(row.reasons.items())) or "none"
        print(f"{figures}  {why}; {row.retries} retries; {', '.join(row.runs)}")
    print("\nHAProxy's own counters, where they moved")
    for row in rows:
        for balancer, found in row.counted.items():
            moved = ", ".join(f"{name} {count}" for name, count in sorted(found.items()) if count)
            print(f"{row.method.name:<29}{balancer}  {moved or 'none'}")
    print(flush=True)


def compare(lab: Lab, add: Add, rate: float, rounds: int) -> str:
    """The four ways one after another, each from the same state. Returns the release from which they began.

    The two that drain take turns, also in who begins: a run's time is noisy by a quarter.
    """
    user = lab.make_user("bench")
    before = settled(lab)
    play(lab, "tests/bench/deploy_stage.yml", "-e", f"django_version={VERSION}")
    turns = [method for number in range(rounds) for method in ((COMMUNITY, OURS), (OURS, COMMUNITY))[number % 2]]
    rows = []
    for method in [*QUICK, *turns]:
        restore(lab, before)
        rows.append(measure(lab, method, user, rate))
    print_table(rows)
    ours, community = ([row for row in rows if row.method is method] for method in (OURS, COMMUNITY))
    failed, sent = sum(row.failed for row in ours), sum(row.sent for row in ours)
    add("deploy: requests that failed, of those sent", f"{failed} / {sent}", f"{failed}", not failed)
    soak = statistics.mean(row.soak for row in ours)
    whole, whole_of_theirs = (statistics.mean(row.whole for row in part) for part in (ours, community))
    switch, switch_of_theirs = (statistics.mean(row.switch for row in part) / len(NODES) for part in (ours, community))
    # Only deploy.yml watches each node for some seconds before it goes on to the next.
    for name, mine, theirs in [
        ("whole playbook", whole, whole_of_theirs),
        ("whole without the soak", whole - soak, whole_of_theirs),
        ("switch of a node", switch, switch_of_theirs),
        ("the same without the soak", switch - soak / len(NODES), switch_of_theirs),
    ]:
        figures = f"{mine:.1f} s / {theirs:.1f} s"
        add(f"deploy: {name}, in community.general's", figures, f"{mine / theirs:.2f}", mine <= theirs)
    return before


def parts_of(played: Played) -> dict[str, dict[str, float]]:
    """{node: {part: seconds}} from the table that deploy.yml prints at the end: drain, switch, ready ..."""
    rows = [
        re.split(r"\s{2,}", line.strip().removeprefix("- ")) for _, line in played.lines if re.match(r" +- \w", line)
    ]
    head = next((row for row in rows if row[0] == "node"), None)
    if head is None:
        raise SystemExit(f"no table in:\n{played.output[-4000:]}")
    switched = [dict(zip(head, row, strict=True)) for row in rows if row[-1] == "switched" and len(row) == len(head)]
    return {
        row["node"]: {name: float(cell.removesuffix(" s")) for name, cell in row.items() if cell.endswith(" s")}
        for row in switched
    }


def soaked(parts: Mapping[str, dict[str, float]]) -> float:
    """Seconds of watching and nothing else: of the last node. The others are watched while the next one is drained."""
    return sum([part.pop("soak", 0.0) for part in parts.values()][-1:])


def written(name: str, hosts: dict[str, Any]) -> Path:
    """An inventory with these hosts and the lab's variables."""
    # As deep as inventories/lab: the group variables find the lab and the example from there.
    directory = ROOT / ".build" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    for part in ("group_vars", "names.py"):
        if not (directory / part).is_symlink():
            (directory / part).symlink_to(f"../../inventories/lab/{part}")
    return directory


def inventory_of(nodes: int, light: bool = False) -> Path:
    """The lab's inventory with so many nodes; light: with one host of each other tier."""
    hosts = yaml.safe_load((ROOT / "inventories/lab/hosts.yml").read_text())
    tiers = hosts["all"]["children"]
    tiers.pop("lab_spare")
    tiers["django"]["hosts"] = {f"app{number}": {"lab_address_suffix": 20 + number} for number in range(1, nodes + 1)}
    for name, tier in tiers.items():
        if light and name != "django":
            tier["hosts"] = dict(list(tier["hosts"].items())[:1])
    return written(f"bench-{nodes}{'-light' if light else ''}", hosts)


@dataclass(frozen=True)
class Size:
    """A deploy without load on so many nodes."""

    nodes: int
    whole: float
    switch: float
    # Seconds for a node by deploy.yml's table, mean of the nodes: drain, switch (stop, start, health) and ready ...
    needed: float
    # ... and how long a node is watched after that while nothing else is done.
    soak: float

    @property
    def beyond(self) -> float:
        return self.switch / self.nodes - self.needed - self.soak


def size_of(lab: Lab, nodes: int, version: str, inventory: Path) -> Size:
    played = play(lab, OURS.playbook, "-e", f"django_version={version}", inventory=inventory)
    parts = parts_of(played)
    if len(parts) != nodes:
        raise SystemExit(f"{len(parts)} of {nodes} nodes were switched:\n{played.output[-3000:]}")
    begin, end = played.span(OURS.begin, OURS.end)
    soak = soaked(parts) / nodes
    return Size(
        nodes, played.seconds, end - begin, statistics.mean(sum(part.values()) for part in parts.values()), soak
    )


def sizes(lab: Lab, add: Add, before: str) -> None:
    """Deploys of a staged release on 3, 2 and 1 nodes of the lab, and on 6 of a lab of its own."""
    first = before.rsplit("-", 1)[0]
    # To and fro, so that each of them has all of its nodes to switch.
    found = [
        size_of(lab, nodes, version, inventory_of(nodes)) for nodes, version in [(3, first), (2, VERSION), (1, first)]
    ]
    restore(lab, before)

    light = Lab(f"{lab.name}-six", str(inventory_of(6, light=True)))
    light.environment["LAB_IMAGE"] = "warm"
    light.tool("down")
    try:
        light.tool("up")
        play(light, "site.yml")
        play(light, "tests/bench/deploy_stage.yml", "-e", f"django_version={VERSION}")
        found.append(size_of(light, 6, VERSION, light.inventory))
    finally:
        light.tool("down")

    print("deploy.yml of a staged release without load (6 nodes: with one host of each other tier)")
    print(f"{'nodes':>5}{'whole':>9}{'switch':>9}{'a node':>9}{'drain to ready':>16}{'soak':>7}{'beyond these':>14}")
    found.sort(key=lambda size: size.nodes)
    for size in found:
        print(
            f"{size.nodes:>5}{size.whole:>7.1f} s{size.switch:>7.1f} s{size.switch / size.nodes:>7.1f} s"
            f"{size.needed:>14.1f} s{size.soak:>5.1f} s{size.beyond:>12.1f} s"
        )
    print(flush=True)
    for size in found:
        each = size.switch / size.nodes
        add(f"deploy: seconds for a node, {size.nodes} of them", f"{size.switch:.1f} s / {size.nodes}", f"{each:.1f}",
            each <= NODE_LIMIT)  # fmt: skip
    # With all that is done on every node beside the switch: staging at the same time must cost nearly nothing.
    one, three = found[0], found[2]
    more = (three.whole - one.whole) / (three.nodes - one.nodes)
    add("deploy: seconds that a further node adds to the whole", f"({three.whole:.1f} - {one.whole:.1f}) s / 2",
        f"{more:.1f}", more <= NODE_LIMIT)  # fmt: skip


def run(lab: Lab, add: Add, rate: float, rounds: int) -> None:
    sizes(lab, add, compare(lab, add, rate, rounds))
