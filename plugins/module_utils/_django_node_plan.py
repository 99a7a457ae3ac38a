# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What systemd and /proc say about a node's processes. Pure: no I/O, no Ansible."""

from __future__ import annotations


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """The output of `systemctl show -p ... a b c`: a paragraph of NAME=value lines per unit, by Id."""
    result: dict[str, dict[str, str]] = {}
    for paragraph in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in paragraph.splitlines() if "=" in line)
        if values.get("Id"):
            result[values["Id"]] = values
    return result


def release_of(directory: str, home: str) -> str | None:
    """The release in whose directory (of /proc/PID/cwd) a process is."""
    prefix = f"{home.rstrip('/')}/releases/"
    if not directory.startswith(prefix):
        return None
    return directory[len(prefix) :].split("/", 1)[0].removesuffix(" (deleted)") or None
