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
        }
