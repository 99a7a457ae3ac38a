# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What programs on a host say, for the status: pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime

# What is mounted, and is no place where anything could run out.
PSEUDO = frozenset(
    {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"}
    | {"fuse.lxcfs", "fusectl", "hugetlbfs", "iso9660", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs"}
    | {"securityfs", "squashfs", "sysfs", "tmpfs", "tracefs"}
)


def certificate_end(shown: str) -> float | None:
    """When a certificate ends, in seconds since the epoch, as `show ssl cert` tells it."""
    found = re.search(r"^notAfter: *(.+?) *(GMT)?$", shown, re.MULTILINE | re.IGNORECASE)
    try:
        return datetime.strptime(found[1], "%b %d %H:%M:%S %Y").replace(tzinfo=UTC).timestamp() if found else None
    except ValueError:
        return None


def mounts_of(text: str) -> list[str]:
    """The places at which file systems are mounted that can fill up, from /proc/mounts."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4 or words[2] in PSEUDO or "ro" in words[3].split(","):
            continue
        if words[2] == "overlay" and words[1] != "/":  # a container's, on a file system that is looked at anyway
            continue
        found.append(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1]))
    return sorted(set(found), key=lambda path: (path.count("/") if path != "/" else 0, path))
