# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Look at the processes and links of a node. Imports little: the status asks every node each time."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._django_node_plan import release_of

UNIT_DIRECTORY = Path("/etc/systemd/system")


def running_release(pid: int, home: str) -> str | None:
    """The release in whose directory a process is."""
    try:
        directory = str(Path(f"/proc/{pid}/cwd").readlink()) if pid else ""
    except OSError:
        return None
    return release_of(directory, home)


def linked(home: str, name: str) -> str | None:
    """The release that a link of the node (current, previous) names."""
    try:
        return Path(home, name).readlink().name
    except OSError:
        return None


def workers(pid: int) -> int:
    """The number of processes that a main process has started, at least one."""
    try:
        return max(1, len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return 1
