# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""The filters of the firewall role. Thin: the decisions are in _firewall_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as plan


def firewall_openings(
    groups: Mapping[str, Sequence[str]], variables: Any, name: str, shared_addresses: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What one host of the inventory opens to which tiers."""
    return plan.openings(name, groups, {key: variables.get(key) for key in plan.VARIABLES}, shared_addresses)


def firewall_rules(
    openings: Sequence[Mapping[str, Any]],
    topology: Mapping[str, Sequence[Mapping[str, Any]]],
    admin_networks: Sequence[str],
) -> list[dict[str, Any]]:
    """The openings with networks in the place of tiers."""
    try:
        return plan.resolve(openings, topology, admin_networks)
    except ValueError as error:
        raise AnsibleFilterError(f"firewall: {error}") from error


def firewall_statements(rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rules in nftables' words."""
    return plan.statements(rules)


def firewall_members(topology: Mapping[str, Sequence[Mapping[str, Any]]], version: int) -> list[str]:
    """The addresses of the cluster's hosts, of one version of the Internet protocol."""
    return plan.of_family(plan.members(topology), version)


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "firewall_members": firewall_members,
            "firewall_openings": firewall_openings,
            "firewall_rules": firewall_rules,
            "firewall_statements": firewall_statements,
        }
