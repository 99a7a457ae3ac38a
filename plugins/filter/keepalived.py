# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""The filters of the keepalived role. Thin: the decisions are in _keepalived_plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.flotilla.django.plugins.module_utils import _keepalived_plan as plan


def keepalived_network(
    links: Sequence[Mapping[str, Any]], own_address: str, shared: Sequence[str], interface: str = ""
) -> dict[str, Any]:
    """The interfaces that the configuration names."""
    try:
        return plan.network(links, own_address, shared, interface)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def keepalived_router_id(addresses: Sequence[str]) -> int:
    """The number of the group of balancers."""
    try:
        return plan.router_id(addresses)
    except ValueError as error:
        raise AnsibleFilterError(f"keepalived_addresses: {error}") from error


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"keepalived_network": keepalived_network, "keepalived_router_id": keepalived_router_id}
