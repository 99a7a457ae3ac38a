# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Filters of the postgresql role: the decision and the derived configuration, computed on the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.flotilla.django.plugins.module_utils import (
    _postgresql_settings_plan as settings_plan,
)
from ansible_collections.flotilla.django.plugins.module_utils import (
    _postgresql_switch_plan as switch_plan,
)
from ansible_collections.flotilla.django.plugins.module_utils import (
    _postgresql_topology_plan as topology_plan,
)


def postgresql_topology_plan(
    members: Sequence[Mapping[str, Any]],
    self_name: str,
    initial_primary: str,
    inspected: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Decide what one member does."""
    try:
        names = [str(member["name"]) for member in members]
        return topology_plan.plan(names, self_name, initial_primary, inspected).as_dict()
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_topology_plan: {error}") from error


def postgresql_peers(members: Sequence[Mapping[str, Any]], self_name: str) -> list[dict[str, str]]:
    """Return the other members, name and address only."""
    try:
        return settings_plan.peers(members, self_name)
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_peers: {error}") from error


def postgresql_configuration(members: Sequence[Mapping[str, Any]], **parameters: Any) -> dict[str, Any]:
    """Compute what the configuration of one member says."""
    try:
        return settings_plan.configuration(members, **parameters)
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_configuration: {error}") from error


def postgresql_setting(value: Any) -> str:
    """Quote one value of postgresql.conf."""
    try:
        return settings_plan.quote_setting(value)
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_setting: {error}") from error


def postgresql_passfile_field(value: str) -> str:
    """Escape one field of a libpq password file."""
    try:
        return settings_plan.passfile_field(value)
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_passfile_field: {error}") from error


def postgresql_switchover_plan(
    members: Sequence[str], new_primary: str, inspected: Mapping[str, Mapping[str, Any]], **limits: Any
) -> dict[str, Any]:
    """Decide how a named member becomes the primary."""
    try:
        return switch_plan.switchover(members, new_primary, inspected, switch_plan.Limits(**limits)).as_dict()
    except (ValueError, TypeError) as error:
        raise AnsibleFilterError(f"postgresql_switchover_plan: {error}") from error


def postgresql_failover_plan(
    members: Sequence[str], inspected: Mapping[str, Mapping[str, Any]], new_primary: str = ""
) -> dict[str, Any]:
    """Decide what is put out of action before a standby is promoted."""
    try:
        return switch_plan.failover(members, new_primary or None, inspected).as_dict()
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_failover_plan: {error}") from error


def postgresql_failover_choice(
    candidates: Sequence[str],
    inspected: Mapping[str, Mapping[str, Any]],
    new_primary: str = "",
    ends: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Choose the most advanced standby."""
    try:
        return switch_plan.choose(inspected, candidates, new_primary or None, ends).as_dict()
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_failover_choice: {error}") from error


def postgresql_restart_plan(
    members: Sequence[str], inspected: Mapping[str, Mapping[str, Any]], everything: bool = False
) -> dict[str, Any]:
    """Decide which members are restarted, and in which order."""
    try:
        return switch_plan.restart(members, inspected, everything).as_dict()
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_restart_plan: {error}") from error


def postgresql_members_table(members: Sequence[str], inspected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe the members, one line each."""
    try:
        return switch_plan.table(members, inspected)
    except ValueError as error:
        raise AnsibleFilterError(f"postgresql_members_table: {error}") from error


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "postgresql_topology_plan": postgresql_topology_plan,
            "postgresql_peers": postgresql_peers,
            "postgresql_configuration": postgresql_configuration,
            "postgresql_setting": postgresql_setting,
            "postgresql_passfile_field": postgresql_passfile_field,
            "postgresql_switchover_plan": postgresql_switchover_plan,
            "postgresql_failover_plan": postgresql_failover_plan,
            "postgresql_failover_choice": postgresql_failover_choice,
            "postgresql_restart_plan": postgresql_restart_plan,
            "postgresql_members_table": postgresql_members_table,
        }
