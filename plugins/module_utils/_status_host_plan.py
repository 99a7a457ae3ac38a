# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What a host is asked for the status, and what its programs say: pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

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


def argument_spec() -> dict[str, Any]:
    """The options of the module status_info."""

    def options(**found: dict[str, Any]) -> dict[str, Any]:
        return {"type": "dict", "options": found}

    health: dict[str, Any] = {
        "address": {"type": "str", "required": True},
        "health_path": {"type": "str", "default": "/-/health"},
    }
    return {
        "timeout": {"type": "float", "default": 5.0},
        "part_timeout": {"type": "float", "default": 4.5},
        "units": {"type": "list", "elements": "str", "default": []},
        "haproxy": options(
            socket={"type": "str", "default": "/run/haproxy/admin.sock"},
            master_socket={"type": "str", "default": "/run/haproxy-master.sock"},
        ),
        "django": options(
            home={"type": "path", "default": "/srv/django"},
            port={"type": "int", "default": 8000},
            timeout={"type": "float", "default": 4.2},
            ca_file={"type": "str", "default": ""},
            **health,
        ),
        "nginx_static": options(
            port={"type": "int", "default": 8080}, timeout={"type": "float", "default": 2.0}, **health
        ),
        "postgresql": options(
            cluster={"type": "str", "default": "main"},
            port={"type": "int", "default": 5432},
            socket_directory={"type": "path", "default": "/var/run/postgresql"},
        ),
        "redis": options(
            name={"type": "str", "required": True},
            address={"type": "str", "required": True},
            port={"type": "int", "default": 6379},
            sentinel_port={"type": "int", "default": 26379},
            user={"type": "str", "required": True},
            password={"type": "str", "required": True, "no_log": True},
            ca_file={"type": "str", "default": ""},
            timeout={"type": "float", "default": 2.0},
        ),
        "prometheus": options(
            alertmanager_url={"type": "str", "default": "http://127.0.0.1:9093"},
            prometheus_url={"type": "str", "default": "http://127.0.0.1:9090"},
            timeout={"type": "float", "default": 1.5},
        ),
    }
