# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""The distribution of a host, from its own files. Pure: no I/O, no Ansible."""

from __future__ import annotations

# The point release is in the second file alone.
COMMAND = "cat /etc/os-release; printf 'DEBIAN_VERSION='; cat /etc/debian_version"


def facts(answer: str) -> dict[str, str]:
    """The facts under the names that ansible.builtin.setup gives them; what the host does not say is empty."""
    said: dict[str, str] = {}
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        said[key] = value.strip().strip("\"'")
    debian = said.get("ID") == "debian"
    release = said.get("VERSION_ID", "")
    return {
        "distribution": "Debian" if debian else said.get("NAME", ""),
        "distribution_major_version": release.partition(".")[0],
        "distribution_version": said.get("DEBIAN_VERSION") or release if debian else release,
    }
