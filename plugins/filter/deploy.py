# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What deploy.yml and rollback.yml ask. Thin: the decisions are in _deploy_plan."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.flotilla.django.plugins.module_utils import _deploy_plan as plan


def deploy_batches(nodes: Sequence[str], size: Any, first: Sequence[str] = ()) -> list[list[str]]:
    try:
        return plan.batches(list(nodes), size, list(first))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def deploy_setting_problems(settings: Mapping[str, Any]) -> list[str]:
    return plan.setting_problems(settings)


def deploy_problems(
    nodes: Sequence[str],
    balancers: Mapping[str, Any],
    unfinished: Sequence[str],
    unhealthy: Mapping[str, str],
    size: Any,
    min_healthy: int,
) -> list[str]:
    try:
        return plan.problems(list(nodes), balancers, list(unfinished), unhealthy, size, int(min_healthy))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def deploy_seen(hosts: Sequence[str], hostvars: Mapping[str, Any], min_free_mb: Any) -> dict[str, Any]:
    answers = {host: (hostvars[host].get("__deploy_asked") or {}).get("answers") for host in hosts}
    return plan.seen({host: parts for host, parts in answers.items() if parts}, int(min_free_mb))


def deploy_out_of_service(nodes: Sequence[str], balancers: Mapping[str, Any]) -> list[str]:
    return plan.out_of_service(balancers, list(nodes))


def deploy_incomplete(nodes: Sequence[str], balancers: Mapping[str, Any]) -> list[str]:
    return plan.incomplete(balancers, list(nodes))


def deploy_is_dead(lock: Mapping[str, Any]) -> bool:
    """Whether the process that took the lock ran on this controller and has ended: nobody will free it."""
    if not lock or lock.get("host") != socket.gethostname():
        return False
    try:
        fields = Path(f"/proc/{int(lock['pid'])}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, ValueError, KeyError, IndexError):
        return not Path(f"/proc/{lock.get('pid')}").exists()
    # Another process may have got the number since.
    return fields[0] == "Z" or int(fields[19]) != lock.get("process_started")


def deploy_rollback_target(nodes: Sequence[str], hostvars: Mapping[str, Any], wanted: str = "") -> str:
    try:
        found = {node: plan.kept(hostvars[node]["__deploy_kept"]["stdout_lines"]) for node in nodes}
        return plan.rollback_target(found, str(wanted))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def deploy_rows(
    nodes: Sequence[str],
    hostvars: Mapping[str, Any],
    balancers: Sequence[str],
    phase: str,
    waited: float,
    former: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """What the registered results of one batch say, by node; also how long the batch before was watched meanwhile."""
    drained = [hostvars[name].get("__deploy_drained") or {} for name in balancers]
    readied = [hostvars[name].get("__deploy_readied") or {} for name in balancers]
    soaked = max((float(result.get("soaked", 0)) for result in drained), default=0.0)
    found: dict[str, dict[str, Any]] = {node: {"soak": soaked} for node in former if soaked}
    for node in nodes:
        facts = hostvars[node]
        switched = (facts.get("__django_activation") or {}).get("seconds", 0)
        release = facts.get("deploy_to" if phase == "switch" else "deploy_from")
        found[node] = plan.switched(str(release), phase, drained, switched, readied, float(waited))
    return found


def deploy_table(nodes: Sequence[str], hostvars: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    names = ("deploy_ran", "deploy_to")
    facts = {node: {name: hostvars[node].get(name) for name in names} for node in nodes}
    return plan.table([plan.row(node, facts[node], rows.get(node)) for node in nodes])


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "deploy_batches": deploy_batches,
            "deploy_problems": deploy_problems,
            "deploy_seen": deploy_seen,
            "deploy_setting_problems": deploy_setting_problems,
            "deploy_out_of_service": deploy_out_of_service,
            "deploy_incomplete": deploy_incomplete,
            "deploy_rollback_target": deploy_rollback_target,
            "deploy_is_dead": deploy_is_dead,
            "deploy_rows": deploy_rows,
            "deploy_table": deploy_table,
        }
