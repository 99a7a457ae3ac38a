# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster as its inventory describes it: pure functions, run on the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TIERS = ("haproxy", "django", "redis", "postgresql", "nginx_static", "prometheus")


def host_address(name: str, variables: Mapping[str, Any]) -> str:
    """The address at which the other hosts of the cluster reach this one."""
    return str(variables.get("cluster_host_address") or variables.get("ansible_host") or name)


def topology(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The hosts of each tier, in the inventory's order, with what the other tiers need to know of them."""
    result: dict[str, list[dict[str, Any]]] = {}
    for tier in TIERS:
        members = []
        for name in groups.get(tier, ()):
            member: dict[str, Any] = {"name": name, "address": host_address(name, hostvars[name])}
            if tier == "django":
                member["weight"] = int(hostvars[name].get("haproxy_weight", 100))
            members.append(member)
        result[tier] = members
    return result
