# SPDX-License-Identifier: GPL-3.0-or-later
"""make bench: what Flotilla costs, as ratios taken in one run on one machine.

1. the first site.yml on fresh hosts against the bare installation of the same packages on the same hosts by one
   ad-hoc command
2. the second site.yml in units of one no-op `ansible.builtin.command` task on all hosts
3. requests per second through the balancer against one gunicorn node and one Nginx asked directly (wrk)
4. the memory of each daemon at rest
5. deploys under load in four ways, and what a node costs (deploys.py)
6. how long Django cannot write while the primary moves, against the same move made by hand, and after it died
   (switchover.py)
7. the same with Patroni on the same hosts (patroni.py)
8. how the time of the playbooks grows from 5 hosts to 30 (growth.py)
9. requests per second with monitoring against those without (monitoring.py)
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import deploys
from tests.bench.deploys import NODES
from tests.bench.growth import growth
from tests.bench.monitoring import monitoring
from tests.bench.patroni import patroni
from tests.bench.switchover import Moves, failover, switchover
from tests.cluster import DOMAIN, ROOT, Browser, Lab

HOSTS = "all:!lab_spare"
LIMITS = {"first": 2.0, "second": 40.0}
BROWSER = ["-H", "Accept-Encoding: gzip, br"]
TIERS = ["haproxy", "django", "redis", "postgresql", "nginx_static"]


@dataclass(frozen=True)
class Case:
    """What is asked for, of whom directly, by how many connections, and the least ratio of the rates (0: shown)."""

    name: str
    path: str
    host: str
    port: int
    connections: int
    headers: list[str]
    limit: float


class Results:
    """The figures, printed as soon as they are there: a part that breaks off does not take the others along."""

    def __init__(self) -> None:
        self.missed = 0

    def add(self, name: str, figures: str, ratio: str, good: bool) -> None:
        self.missed += not good
        print(f"{name:<66} {figures:>22} = {ratio:>6}  {'ok' if good else 'MISSED'}", flush=True)


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def seconds(lab: Lab, *command: str) -> float:
    """How long a command takes; its output is kept out of the figures and shown when it fails."""
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=lab.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return time.monotonic() - started


def ad_hoc(lab: Lab, *arguments: str) -> float:
    return seconds(lab, str(ROOT / ".venv/bin/ansible"), "-i", str(lab.inventory), HOSTS, *arguments)


def site(lab: Lab) -> float:
    return seconds(lab, str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(lab.inventory), "site.yml")


def installed(lab: Lab) -> dict[str, str]:
    """The packages that site.yml brought to each host: what apt would be asked for, without their dependencies."""
    output = subprocess.run(
        [str(ROOT / ".venv/bin/ansible"), "-i", str(lab.inventory), HOSTS, "-o", "-m", "ansible.builtin.command",
         "-a", "cat /var/log/apt/history.log"],
        cwd=ROOT, env=lab.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    packages = {}
    for line in output.splitlines():
        host = line.split(" ", 1)[0]
        names = re.findall(r"([a-z0-9][a-z0-9+.-]+):\w+ \([^,()]+\)", " ".join(re.findall(r"Install: (.*?)\\n", line)))
        packages[host] = " ".join(sorted(set(names)))
    return packages


def converge(lab: Lab, results: Results) -> None:
    log("a fresh lab, then site.yml ...")
    seconds(lab, "lab/lab", "down")
    seconds(lab, "lab/lab", "up")
    ours = site(lab)
    packages = installed(lab)

    units = [ad_hoc(lab, "-m", "ansible.builtin.command", "-a", "true") for _ in range(5)]
    playbook = ROOT / "tests/bench/unit.yml"
    unit = statistics.median(
        float(subprocess.run(
            [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(lab.inventory), str(playbook)],
            cwd=ROOT, env=lab.environment, capture_output=True, text=True, check=True,
        ).stdout.split("unit=")[1].split()[0])
        for _ in range(3)
    )  # fmt: skip
    log(f"one no-op task: {unit:.2f} s in a play of five, {statistics.median(units):.2f} s as a command of its own")
    again = site(lab)
    results.add("second site.yml, in no-op tasks on all hosts", f"{again:.0f} s / {unit:.2f} s",
                    f"{again / unit:.1f}", again / unit <= LIMITS["second"])  # fmt: skip

    log("a fresh lab, then the bare packages ...")
    bare_lab = Lab(f"{lab.name}-bare")
    seconds(bare_lab, "lab/lab", "down")
    seconds(bare_lab, "lab/lab", "up")
    for host, names in packages.items():
        bare_lab.ssh(host, "cat > /root/packages", names)
    bare = ad_hoc(
        bare_lab, "-m", "ansible.builtin.shell",
        "-a", "apt-get update -q && DEBIAN_FRONTEND=noninteractive"
              " xargs apt-get install -qy --no-install-recommends < /root/packages",
    )  # fmt: skip
    seconds(bare_lab, "lab/lab", "down")
    results.add("first site.yml, in bare installations of the packages", f"{ours:.0f} s / {bare:.0f} s",
                    f"{ours / bare:.2f}", ours / bare <= LIMITS["first"])  # fmt: skip


def found(pattern: str, text: str) -> str:
    """The first group of a pattern that must be there."""
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern} in:\n{text[:2000]}")
    return match[1]


def rate(url: str, address: str, connections: int, duration: int, headers: list[str]) -> float:
    """Requests per second by wrk, which checks no certificate and sends the Host that it is told."""
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "-H", f"Host: {DOMAIN}", *headers,
         url.replace(DOMAIN, address)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"wrk {url}:\n{output}")
    return float(found(r"Requests/sec:\s+([\d.]+)", output))


@contextlib.contextmanager
def alone(lab: Lab, node: str) -> Iterator[None]:
    """The balancers send requests to no other Django node."""
    others = [name for name in NODES if name != node]
    for name in others:
        deploys.play(lab, "playbooks/drain.yml", "-e", f"drain_host={name}")
    try:
        yield
    finally:
        for name in others:
            deploys.play(lab, "playbooks/undrain.yml", "-e", f"drain_host={name}")


def compare(lab: Lab, results: Results, case: Case, duration: int, rounds: int) -> None:
    """Requests per second through the balancer and directly, in turns: a slow minute of the machine hits both."""
    direct, balanced = [], []
    for _ in range(rounds):
        direct.append(
            rate(
                f"http://{DOMAIN}:{case.port}{case.path}",
                lab.address(case.host),
                case.connections,
                duration,
                case.headers,
            )
        )
        balanced.append(
            rate(f"https://{DOMAIN}{case.path}", lab.address("lb1"), case.connections, duration, case.headers)
        )
    ratio = statistics.median(b / d for b, d in zip(balanced, direct, strict=True))
    figures = f"{statistics.median(balanced):.0f}/s / {statistics.median(direct):.0f}/s"
    results.add(f"{case.name} through the balancer (TLS), in direct ones", figures, f"{ratio:.2f}", ratio >= case.limit)


def throughput(lab: Lab, results: Results, duration: int, rounds: int) -> None:
    page = Browser(lab, "lb1").get("/").text
    asset = found(r'"(/static/[^"]+\.css)"', page)
    # What the balancer costs shows with the same node behind it: three nodes share the caches of the same two cores.
    with alone(lab, NODES[0]):
        compare(
            lab,
            results,
            Case("application, same node,", "/lights/", NODES[0], 8000, 8, BROWSER, 0.85),
            duration,
            rounds,
        )
    for case in [
        Case("application, all nodes,", "/lights/", NODES[0], 8000, 8, BROWSER, 0.85),
        Case("static", asset, "static1", 8080, 32, BROWSER, 0.7),
        # Shows what the memory of the balancer saves: who takes no compressed answer is served by Nginx each time.
        Case("static, from Nginx each time,", asset, "static1", 8080, 32, [], 0.0),
    ]:
        compare(lab, results, case, duration, rounds)


def memory(lab: Lab) -> list[tuple[str, str, int]]:
    """Proportional set size in KiB of each daemon, from /proc, summed over its processes."""
    program = (
        "for p in /proc/[0-9]*; do echo $(awk '/^Pss:/ {print $2}' $p/smaps_rollup 2>/dev/null)"
        " $(tr '\\0' ' ' < $p/cmdline 2>/dev/null); done"
    )
    daemons = {"lb1": "haproxy", "app1": "gunicorn", "db1": "postgres", "cache1": "redis-server", "static1": "nginx"}
    rows = []
    for host, daemon in daemons.items():
        sizes = [line.split(" ", 1) for line in lab.ssh(host, program).splitlines() if daemon in line]
        rows.append((host, daemon, sum(int(size) for size, _ in sizes if size.isdigit())))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default="bench", help="the lab to use (default: %(default)s, made and removed)")
    parser.add_argument(
        "--only",
        choices=[
            "converge",
            "throughput",
            "memory",
            "monitoring",
            "deploys",
            "switchover",
            "failover",
            "patroni",
            "growth",
        ],
        help="one part, on a lab that is up (growth makes its own); patroni makes our moves before, to compare with",
    )
    parser.add_argument("--inventory", default="lab", help="its inventory (default: %(default)s)")
    parser.add_argument("--balancer", default="lb1", help="whom monitoring asks (default: %(default)s)")
    parser.add_argument("--duration", type=int, default=8, help="seconds of each load (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of loads and of draining deploys (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=40, help="requests a second during deploys (default: %(default)s)"
    )
    arguments = parser.parse_args()
    lab = Lab(arguments.lab, arguments.inventory)
    results = Results()

    if arguments.only in {None, "converge"}:
        converge(lab, results)
    if arguments.only in {None, "throughput"}:
        throughput(lab, results, arguments.duration, arguments.rounds)
    if arguments.only in {None, "memory"}:
        print("\nmemory at rest (proportional set size)")
        for host, name, size in memory(lab):
            print(f"  {host:<8} {name:<14} {size / 1024:7.1f} MiB")
    if arguments.only in {None, "monitoring"}:
        monitoring(
            lab,
            results.add,
            lambda: rate(f"https://{DOMAIN}/lights/", lab.address(arguments.balancer), 8, arguments.duration, BROWSER),
            4 * arguments.rounds,
        )
    if arguments.only in {None, "deploys"}:
        deploys.run(lab, results.add, arguments.rate, arguments.rounds)
    moves: Moves = {}
    if arguments.only in {None, "switchover", "patroni"}:
        moves |= switchover(lab, results, arguments.rounds)
    if arguments.only in {None, "failover", "patroni"}:
        moves |= failover(lab, results, arguments.rounds)
    if arguments.only in {None, "patroni"}:
        patroni(lab, results, moves, arguments.rounds)
    if arguments.only is None:
        seconds(lab, "lab/lab", "down")
    if arguments.only in {None, "growth"}:
        growth(lab.name, results.add)
    return 1 if results.missed else 0


if __name__ == "__main__":
    sys.exit(main())
