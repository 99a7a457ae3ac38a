# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Where the shared addresses of the balancers belong on one host. Pure: no I/O, no Ansible."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any


def router_id(addresses: Sequence[str]) -> int:
    """A number from 1 to 255 that the first address determines; 1 without an address."""
    return int(ipaddress.ip_address(addresses[0])) % 255 + 1 if addresses else 1


def network(
    links: Sequence[Mapping[str, Any]], own_address: str, shared: Sequence[str], interface: str = ""
) -> dict[str, Any]:
    """The interface of the balancers' own talk, and the one of each shared address, from `ip -json address`."""
    own = ipaddress.ip_address(own_address)
    found = [
        (str(link["ifname"]), ipaddress.ip_interface(f"{item['local']}/{item['prefixlen']}"))
        for link in links
        for item in link.get("addr_info", ())
        if "local" in item and link["ifname"] != "lo"
    ]
    home = next((name for name, item in found if item.ip == own), None)
    if home is None:
        known = ", ".join(f"{name} {item.ip}" for name, item in found) or "none"
        raise ValueError(
            f"keepalived_address: got {own}, which is on no interface of this host ({known}), "
            "wants one of its own addresses (cluster_host_address)"
        )
    if interface and interface not in {str(link["ifname"]) for link in links}:
        names = ", ".join(str(link["ifname"]) for link in links)
        raise ValueError(f"keepalived_interface: got '{interface}', wants an interface of this host ({names})")
    addresses = []
    for text in shared:
        address = ipaddress.ip_address(text)
        # The address itself, where this host holds it now, is a network of one and says nothing.
        near = [
            (item.network.prefixlen, name) for name, item in found if item.ip != address and address in item.network
        ]
        addresses.append(
            {
                "address": str(address),
                # Alone in its network, so that it is never the source of what this host itself sends.
                "prefix": address.max_prefixlen,
                "interface": interface or (max(near)[1] if near else home),
                "same_family": address.version == own.version,
            }
        )
    return {"interface": home, "addresses": addresses}
