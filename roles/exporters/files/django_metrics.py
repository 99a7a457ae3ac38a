# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Writes what gunicorn says about itself for the node exporter.

django_metrics.py ADDRESS PORT HEALTH_PATH FILE [CA_FILE]

The release is asked of the process that serves, not read from the disk: after an interrupted deploy the two differ.
Runs with the host's Python, without any package.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

# How a line of /proc/<pid>/cgroup ends for a process of the service, whatever the version of cgroups.
UNIT = "/system.slice/django.service"


def connect(address: str, port: int, ca_file: str) -> http.client.HTTPConnection:
    """Plain without an authority."""
    if not ca_file:
        return http.client.HTTPConnection(address, port, timeout=5)
    context = ssl.create_default_context(cafile=ca_file)
    return http.client.HTTPSConnection(address, port, timeout=5, context=context)


def ask(address: str, port: int, path: str, ca_file: str = "") -> tuple[int, str]:
    """The status and the release; 0 when nobody answers."""
    try:
        connection = connect(address, port, ca_file)
    except OSError:
        return 0, ""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read(65536))
        return answer.status, str(body.get("release") or "") if isinstance(body, dict) else ""
    except (OSError, ValueError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def parents(processes: Path = Path("/proc")) -> dict[int, int]:
    """The processes of the service, each with its parent."""
    found = {}
    for process in processes.glob("[0-9]*"):
        try:
            groups = (process / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
            if not any(line.endswith(UNIT) for line in groups):
                continue
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        found[int(process.name)] = int(stat.rsplit(")", 1)[1].split()[1])
    return found


def workers(family: Mapping[int, int]) -> int:
    """The children of the main process, which is the one whose parent does not belong to the service."""
    main = {pid for pid, parent in family.items() if parent not in family}
    return sum(parent in main for pid, parent in family.items() if pid not in main)


def metrics(status: int, release: str, count: int) -> str:
    """The text that the node exporter hands on."""
    lines = [
        "# HELP flotilla_django_healthy Whether gunicorn's health address answers 200.",
        "# TYPE flotilla_django_healthy gauge",
        f"flotilla_django_healthy {int(status == 200)}",
        "# HELP flotilla_django_workers The worker processes of gunicorn.",
        "# TYPE flotilla_django_workers gauge",
        f"flotilla_django_workers {count}",
    ]
    if release:
        quoted = release.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines += [
            "# HELP flotilla_django_release_info The release that gunicorn serves.",
            "# TYPE flotilla_django_release_info gauge",
            f'flotilla_django_release_info{{release="{quoted}"}} 1',
        ]
    return "\n".join(lines) + "\n"


def main(address: str, port: str, path: str, target: str, ca_file: str = "") -> None:
    text = metrics(*ask(address, int(port), path, ca_file), workers(parents()))
    # Whole or not at all: the exporter may read at this moment.
    fresh = Path(f"{target}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
