# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules ask the Sentinels of a Redis tier."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils._redis_plan import (
    DENIED,
    REFUSED,
    UNREACHABLE,
    UP,
    Node,
    parse_users,
)
from ansible_collections.flotilla.django.plugins.module_utils._redis_sentinel_plan import (
    WATCHED,
    Peer,
    Sentinel,
    Wanted,
    names_of,
    own_commands,
    stored,
    strangers,
    unsettled,
    watch_commands,
)


def sentinel_options() -> dict[str, Any]:
    """The argument specification of flotilla.django.redis.sentinel."""
    options = {
        "path": {"type": "path", "required": True},
        "acl_path": {"type": "path", "required": True},
        "user": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        "down_after_ms": {"type": "int", "default": 5000},
    }
    return {"sentinel": {"type": "dict", "options": options}}


def _peer(reply: Sequence[str]) -> Peer:
    fields = redis_io.pairs(reply)
    return Peer(
        fields["ip"],
        int(fields["port"]),
        fields.get("runid", ""),
        int(fields.get("slave-priority", "100")),
        tuple(fields["flags"].split(",")),
    )


def ask(
    member: Mapping[str, str],
    port: int,
    user: str,
    password: str,
    timeout: float,
    tls: redis_io.Tls | None = None,
) -> Sentinel:
    """What one Sentinel says about itself and what it watches."""
    name, address = member["name"], member["address"]
    try:
        with redis_io.Client(address, port, user, password, timeout, tls) as client:
            run_id = client.call("SENTINEL", "MYID")
            if not client.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", WATCHED):
                return Sentinel(name, address, UP, run_id)
            master = redis_io.pairs(client.call("SENTINEL", "MASTER", WATCHED))
            return Sentinel(
                name,
                address,
                UP,
                run_id,
                client.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", WATCHED)[0],
                tuple(master["flags"].split(",")),
                master,
                tuple(_peer(reply) for reply in client.call("SENTINEL", "SENTINELS", WATCHED)),
                tuple(_peer(reply) for reply in client.call("SENTINEL", "REPLICAS", WATCHED)),
            )
    except ConnectionRefusedError:
        return Sentinel(name, address, REFUSED, detail="connection refused")
    except (redis_io.ReplyError, ssl.SSLCertVerificationError) as error:
        return Sentinel(name, address, DENIED, detail=str(error))
    except (OSError, ValueError) as error:
        return Sentinel(name, address, UNREACHABLE, detail=str(error) or type(error).__name__)


def ask_all(
    members: Sequence[Mapping[str, str]],
    port: int,
    user: str,
    password: str,
    timeout: float,
    tls: redis_io.Tls | None = None,
) -> list[Sentinel]:
    """What all Sentinels say, asked at the same time, in the order of the members. None where port is 0."""
    if not port:
        return []
    with ThreadPoolExecutor(max_workers=max(len(members), 1)) as pool:
        return list(pool.map(lambda member: ask(member, port, user, password, timeout, tls), members))


def wanted_of(params: Mapping[str, Any]) -> Wanted:
    """What a module was told about the Sentinel of its host."""
    told = params["sentinel"]
    return Wanted(len(params["members"]), told["user"], told["password"], told["down_after_ms"])


def differences(
    params: Mapping[str, Any], own: Sentinel, sentinels: Sequence[Sentinel], master: Node | None
) -> list[str]:
    """What is not as it should be with the Sentinel of this host."""
    told = params["sentinel"]
    addresses = [member["address"] for member in params["members"]]
    on_disk = stored(redis_io.read_text(told["path"]))
    wanted = wanted_of(params)
    at = master.address if master else ""
    found = names_of(own_commands(wanted, on_disk) + watch_commands(own, wanted, on_disk, at, params["port"]))
    found += [f"counts {address}" for address in strangers(own, addresses)] + unsettled(own, sentinels, at)
    with redis_io.Client(own.address, params["sentinel_port"], *redis_io.login_of(params)) as client:
        changed, deleted = redis_io.differing_users(client, parse_users(redis_io.read_text(told["acl_path"])))
    return found + [f"user {name}" for name in changed + deleted]
