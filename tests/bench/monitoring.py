# SPDX-License-Identifier: GPL-3.0-or-later
"""What monitoring costs: requests per second with it and without it, in turns on one cluster.

The monitor shares the machine with the hosts that it watches, so its own work is in the figure, too. In real life a
machine of its own does that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import yaml

from tests.cluster import Lab

LIMIT = 0.97
SERVICES = "prometheus*.service flotilla-monitoring.service"
TIMER = "flotilla-django-metrics.timer"


class Watch:
    """The monitors and the exporters: stopped where they are and going on, so that no start is in the figures."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        groups = yaml.safe_load((lab.inventory / "hosts.yml").read_text())["all"]["children"]
        groups.pop("lab_spare", None)
        listed = {
            host: lab.ssh(host, f"systemctl list-units --plain --no-legend {SERVICES} {TIMER}").splitlines()
            for host in sorted({name for group in groups.values() for name in group["hosts"]})
        }
        self._units = {host: [line.split()[0] for line in lines] for host, lines in listed.items() if lines}
        if "prometheus.service" not in {unit for units in self._units.values() for unit in units}:
            raise SystemExit(f"lab {lab.name} has no host that runs Prometheus: monitoring wants one")

    def go_on(self, on: bool) -> None:
        for host, units in self._units.items():
            services = " ".join(unit for unit in units if unit != TIMER)
            timer = f"systemctl {'start' if on else 'stop'} {TIMER};" if TIMER in units else ""
            self._lab.ssh(host, f"{timer} systemctl kill --signal={'CONT' if on else 'STOP'} {services}")

    def cpu_seconds(self) -> dict[str, float]:
        """What the services have used so far, by host. (Where hosts are containers, systemd does not count it.)"""
        found = {}
        for host, units in self._units.items():
            ask = f"cd /proc; cat $(systemctl show --value -p MainPID {' '.join(units)} | sed -n 's,[1-9].*,&/stat,p')"
            stats = [line.rpartition(")")[2].split() for line in self._lab.ssh(host, ask).splitlines()]
            found[host] = sum(int(ticks) for stat in stats for ticks in stat[11:15]) / 100
        return found


def monitoring(
    lab: Lab,
    add: Callable[[str, str, str, bool], None],
    rate: Callable[[], float],
    rounds: int,
) -> None:
    watch = Watch(lab)
    figures: dict[bool, list[float]] = {True: [], False: []}
    used: dict[str, float] = {}
    lasted = 0.0
    try:
        for number in range(2 * rounds):
            # with, without, without, with: a machine that gets slower or faster hits both.
            on = number % 4 in (0, 3)
            watch.go_on(on)
            time.sleep(2)
            before, began = watch.cpu_seconds(), time.monotonic()
            figures[on].append(rate())
            if on:
                lasted += time.monotonic() - began
                for host, value in watch.cpu_seconds().items():
                    used[host] = used.get(host, 0.0) + value - before[host]
    finally:
        watch.go_on(on=True)
    shares = ", ".join(f"{host} {100 * value / lasted:.2f}" for host, value in used.items())
    print(f"\nmonitors and exporters, in hundredths of a core: {shares}; all {100 * sum(used.values()) / lasted:.2f}")
    ratio = statistics.median(a / b for a, b in zip(figures[True], figures[False], strict=True))
    shown = f"{statistics.median(figures[True]):.0f}/s / {statistics.median(figures[False]):.0f}/s"
    add("requests with monitoring, in those without", shown, f"{ratio:.3f}", ratio >= LIMIT)
