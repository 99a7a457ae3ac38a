# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What status.yml, scale_out.yml and scale_in.yml ask. Thin: the decisions are in _status_plan and _scale_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.flotilla.django.plugins.filter import cluster as inventory
from ansible_collections.flotilla.django.plugins.module_utils import _scale_plan as scale
from ansible_collections.flotilla.django.plugins.module_utils import _status_plan as plan


def cluster_of(groups: Mapping[str, Sequence[str]], hostvars: Any, asked: Sequence[str]) -> plan.Cluster:
    """What the inventory says."""
    topology = inventory.cluster_topology(groups, hostvars)
    balancers = [item["name"] for item in topology["haproxy"]]
    domain = hostvars[balancers[0]].get("cluster_domain") if balancers else None
    return plan.Cluster(
        domain=str(domain or "the cluster"),
        tiers={tier: [item["name"] for item in items] for tier, items in topology.items()},
        addresses={item["name"]: item["address"] for items in topology.values() for item in items},
        asked=[str(name) for name in asked],
        weights={item["name"]: item["weight"] for item in topology["django"]},
        shared=inventory.cluster_virtual_addresses(groups, hostvars),
    )


def answers_of(hostvars: Any, names: Sequence[str], seen: str) -> dict[str, Mapping[str, Any]]:
    """What each host answered, or why it did not."""
    # Not through the templates, which would look at all of a result: Ansible warns of one part of those that timed out.
    raw = getattr(hostvars, "raw_get", hostvars.__getitem__)
    return {name: _answer(raw(name).get(seen) or {}) for name in names}


def _answer(result: Any) -> Mapping[str, Any]:
    if "answers" in result:
        answers: Mapping[str, Any] = inventory.plain(result["answers"])
        return answers
    why = str(result.get("msg") or result.get("module_stderr") or "no reason was given")
    # A connection that was open when its host vanished hangs, until the task's own time is over.
    return {"unreachable" if "unreachable" in result or "timedout" in result else "failed": why}


def status_setting_problems(limits: Mapping[str, Any], shown_as: Any = "table") -> list[str]:
    return plan.setting_problems(dict(limits), shown_as)


def cluster_groups(groups: Mapping[str, Sequence[str]], leaving: str = "") -> dict[str, list[str]]:
    return scale.without(groups, str(leaving))


def cluster_but(leaving: str = "") -> str:
    """The end of a pattern of hosts that leaves out a host that leaves."""
    return f":!{leaving}" if leaving else ""


def scale_in_problems(
    groups: Mapping[str, Sequence[str]], hostvars: Any, host: str, seen: str, accept: Any = ()
) -> list[str]:
    words = accept.split(",") if isinstance(accept, str) else list(accept)
    cluster = cluster_of(groups, hostvars, [])
    names = dict.fromkeys(name for hosts in cluster.tiers.values() for name in hosts)
    answers = answers_of(hostvars, list(names), seen)
    return scale.scale_in_problems(cluster, answers, str(host), [word.strip() for word in words if word.strip()])


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "cluster_but": cluster_but,
            "cluster_groups": cluster_groups,
            "scale_in_problems": scale_in_problems,
            "status_setting_problems": status_setting_problems,
        }
