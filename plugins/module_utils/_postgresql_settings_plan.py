# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""What a member's configuration says, derived from the inventory and the size of the host. Pure functions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_NAME_BYTES = 63


def slot_name(member: str) -> str:
    """Return the name of a member's physical slot: PostgreSQL allows lower case letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9_]", "_", member.lower())
    if not name or len(name) > MAX_NAME_BYTES:
        raise ValueError(
            f"the member name {member!r} makes no slot name: it must have 1 to {MAX_NAME_BYTES} characters"
        )
    return name


def network(address: str) -> str:
    """Return an address or network the way pg_hba.conf wants it: always with a prefix length."""
    try:
        return str(ipaddress.ip_network(str(address), strict=True))
    except ValueError as error:
        raise ValueError(
            f"{address!r} is neither an IP address nor a network (pg_hba.conf takes no host names here): {error}"
        ) from error


def conninfo_value(value: Any) -> str:
    """Quote one value of a libpq connection string."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def passfile_field(value: str) -> str:
    """Escape one field of a libpq password file."""
    if "\n" in value or "\r" in value:
        raise ValueError("a password must not hold a line break")
    return value.replace("\\", "\\\\").replace(":", "\\:")


def quote_setting(value: Any) -> str:
    """Quote one value of postgresql.conf."""
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if "\n" in text:
        raise ValueError("a setting must not hold a line break")
    return "'" + text.replace("'", "''") + "'"


def memory_settings(memory_mb: int, max_connections: int) -> dict[str, str]:
    """Derive the memory settings from the memory PostgreSQL may use, in MiB.

    shared_buffers: a quarter, in steps of 16 MiB so that a kernel update that changes the host's memory by
    some pages does not ask for a restart. effective_cache_size: three quarters. maintenance_work_mem: 1/16,
    16 MiB to 1 GiB. work_mem: a quarter shared out over all connections, 4 to 64 MiB.
    """
    if memory_mb < 128:
        raise ValueError(f"postgresql_memory_mb is {memory_mb}, but PostgreSQL needs at least 128 MiB")
    if max_connections < 10:
        raise ValueError(
            f"postgresql_max_connections is {max_connections}, but replication and monitoring alone need 10"
        )
    return {
        "shared_buffers": f"{memory_mb // 4 // 16 * 16}MB",
        "effective_cache_size": f"{memory_mb * 3 // 4 // 16 * 16}MB",
        "maintenance_work_mem": f"{min(1024, max(16, memory_mb // 16))}MB",
        "work_mem": f"{min(64, max(4, memory_mb // 4 // max_connections))}MB",
    }


def synchronous_standby_names(others: Sequence[str], count: int) -> str:
    """Return the setting that waits for any `count` of the other members; the empty string turns it off."""
    if count < 0:
        raise ValueError(f"postgresql_synchronous_standbys is {count}, it must not be negative")
    if count == 0:
        return ""
    if count > len(others):
        raise ValueError(
            f"postgresql_synchronous_standbys is {count}, but there are only {len(others)} other members: no write "
            "would ever return"
        )
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in others)
    return f"ANY {count} ({quoted})"


def peers(members: Sequence[Mapping[str, Any]], self_name: str) -> list[dict[str, str]]:
    """Return the other members. Raises ValueError where the list of members cannot be right."""
    names = [str(member["name"]) for member in members]
    if self_name not in names:
        raise ValueError(f"{self_name} is not one of postgresql_members: {', '.join(names) or 'none'}")
    slots = [slot_name(name) for name in names]
    networks = [network(str(member["address"])) for member in members]
    for what, values in (("name", names), ("slot name", slots), ("address", networks)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"two members of postgresql_members have the same {what}: {', '.join(twice)}")
    return [
        {"name": str(member["name"]), "address": str(member["address"])}
        for member in members
        if member["name"] != self_name
    ]


def configuration(
    members: Sequence[Mapping[str, Any]],
    self_name: str,
    port: int,
    replication_user: str,
    passfile: str,
    client_addresses: Sequence[str],
    synchronous_standbys: int,
    memory_mb: int,
    max_connections: int,
    ca_file: str = "",
) -> dict[str, Any]:
    """Return everything the templates of a member need that has to be computed."""
    others = peers(members, self_name)
    conninfo: dict[str, Any] = {
        "host": ",".join(member["address"] for member in others),
        "port": port,
        "user": replication_user,
        "passfile": passfile,
        # Among all members the one that accepts writes: a standby never follows another standby,
        # and finds the new primary by itself after a promotion.
        "target_session_attrs": "read-write",
        "connect_timeout": 3,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10000,
    }
    if ca_file:
        # Whoever cannot prove to be that address gets neither a password nor a byte.
        conninfo |= {"sslmode": "verify-full", "sslrootcert": ca_file}
    return {
        "slot": slot_name(self_name),
        "peer_slots": [slot_name(member["name"]) for member in others],
        "peer_networks": [network(member["address"]) for member in others],
        "client_networks": sorted({network(address) for address in client_addresses}),
        "primary_conninfo": " ".join(f"{key}={conninfo_value(value)}" for key, value in conninfo.items())
        if others
        else "",
        "synchronous_standby_names": synchronous_standby_names(
            [member["name"] for member in others], synchronous_standbys
        ),
        "memory": memory_settings(memory_mb, max_connections),
    }
