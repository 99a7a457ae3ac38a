# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Redis client of the standard library alone (RESP 2), and what the modules ask a member and tell it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils._redis_plan import (
    DENIED,
    REFUSED,
    UNREACHABLE,
    Node,
    node_from_info,
    parse_info,
    settings_to_set,
)

# A user that exists for a moment, switched off, to see how this Redis writes down a list of rules.
SCRATCH_USER = "flotilla-compare"


class ReplyError(Exception):
    """Redis answered with an error."""


class Client:
    """One connection. Every call ends after the time-out, in seconds."""

    def __init__(self, address: str, port: int, user: str, password: str, timeout: float = 2.0) -> None:
        self._socket = socket.create_connection((address, port), timeout=timeout)
        self._stream = self._socket.makefile("rb")
        try:
            self.call("AUTH", user, password)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def call(self, *words: str) -> Any:
        parts = [word.encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        reply = self._reply()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def _line(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        return line[:-2]

    def _reply(self) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            if length < 0:
                return None
            data = self._stream.read(length + 2)
            if len(data) != length + 2:
                raise ConnectionError("Redis closed the connection")
            return data[:-2].decode(errors="replace")
        if kind == b"*":
            return [self._reply() for _index in range(max(int(rest), 0))]
        raise ConnectionError(f"this is not Redis: it answered with {line[:20]!r}")


def ask(member: Mapping[str, str], port: int, user: str, password: str, timeout: float) -> Node:
    """What one member says about itself."""
    name, address = member["name"], member["address"]
    try:
        with Client(address, port, user, password, timeout) as client:
            return node_from_info(name, address, parse_info(client.call("INFO")))
    except ConnectionRefusedError:
        return Node(name, address, REFUSED, detail="connection refused")
    except ReplyError as error:
        return Node(name, address, DENIED, detail=str(error))
    except (OSError, ValueError) as error:
        return Node(name, address, UNREACHABLE, detail=str(error) or type(error).__name__)


def ask_all(members: Sequence[Mapping[str, str]], port: int, user: str, password: str, timeout: float) -> list[Node]:
    """What all members say, asked at the same time, in the order of the members."""
    with ThreadPoolExecutor(max_workers=max(len(members), 1)) as pool:
        return list(pool.map(lambda member: ask(member, port, user, password, timeout), members))


def pairs(reply: Sequence[str]) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def differing_settings(client: Client, wanted: Mapping[str, str]) -> dict[str, str]:
    """The wanted settings that the running Redis does not have."""
    return settings_to_set(wanted, pairs(client.call("CONFIG", "GET", *wanted))) if wanted else {}


def differing_users(client: Client, wanted: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Names of the users to set and to delete.

    Redis writes rules down in its own words, differently in each version. So it is asked what the wanted rules look
    like: a scratch user gets them for the time of the comparison.
    """
    to_set = []
    try:
        for name, rules in wanted.items():
            client.call("ACL", "SETUSER", SCRATCH_USER, "reset", *rules, "off")
            like = client.call("ACL", "GETUSER", SCRATCH_USER)
            real = client.call("ACL", "GETUSER", name)
            if real is None or _comparable(real) != _comparable(like, "on" in rules):
                to_set.append(name)
    finally:
        client.call("ACL", "DELUSER", SCRATCH_USER)
    return to_set, sorted(set(client.call("ACL", "USERS")) - set(wanted) - {SCRATCH_USER})


def _comparable(user: Sequence[Any], enabled: bool | None = None) -> tuple[dict[str, Any], bool]:
    """A GETUSER reply in an order that does not depend on how it came to be, and whether the user may log in."""
    fields = dict(zip(user[::2], user[1::2], strict=True))
    flags = set(fields.pop("flags"))
    fields["passwords"] = sorted(fields["passwords"])
    # Redis 7.0 shows sanitize-payload only of users that were reset, though it is the default of all.
    return fields | {"flags": flags - {"on", "off", "sanitize-payload"}}, "on" in flags if enabled is None else enabled


def set_users(
    client: Client, wanted: Mapping[str, Sequence[str]], to_set: Sequence[str], to_delete: Sequence[str]
) -> None:
    """Changes users in place. Unlike ACL LOAD of Redis 7.0, which ends everybody's connections."""
    for name in to_set:
        client.call("ACL", "SETUSER", name, "reset", *wanted[name])
    if to_delete:
        client.call("ACL", "DELUSER", *to_delete)


def read_text(path: str) -> str:
    """The text of a file, empty when there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def host_memory_mb() -> int:
    """The memory of this host in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def overcommit_memory() -> tuple[int, bool]:
    """vm.overcommit_memory, and whether this host may change it (a container may not)."""
    path = Path("/proc/sys/vm/overcommit_memory")
    return int(path.read_text(encoding="ascii")), os.access(path, os.W_OK)
