# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Redis client of the standard library alone (RESP 2), and what the modules ask a member and tell it."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
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


def member_options() -> dict[str, Any]:
    """The argument specification of the documentation fragment flotilla.django.redis."""
    member = {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}}
    return {
        "members": {"type": "list", "elements": "dict", "required": True, "options": member},
        "port": {"type": "int", "default": 6379},
        "sentinel_port": {"type": "int", "default": 0},
        "login_user": {"type": "str", "required": True},
        "login_password": {"type": "str", "required": True, "no_log": True},
        "timeout": {"type": "float", "default": 2.0},
        "ca_file": {"type": "path"},
        "plain_too": {"type": "bool", "default": False},
    }


@dataclass(frozen=True)
class Tls:
    """Who has to prove its address with a certificate, and whether one that speaks no TLS is believed as well."""

    context: ssl.SSLContext
    plain_too: bool = False


# User, password, time-out in seconds, and TLS.
Login = tuple[str, str, float, Tls | None]


@cache
def tls_of(ca_file: str | None, plain_too: bool) -> Tls | None:
    """None where no TLS is spoken. Raises OSError when the authority's file is missing or no certificate."""
    if not ca_file or (plain_too and not Path(ca_file).exists()):
        return None
    return Tls(ssl.create_default_context(cafile=ca_file), plain_too)


def login_of(params: Mapping[str, Any]) -> Login:
    """What a module was told about how it logs in."""
    tls = tls_of(params["ca_file"], params["plain_too"])
    return params["login_user"], params["login_password"], params["timeout"], tls


def login_for(module: Any) -> Login:
    """The same at the beginning of a module, which ends here when the authority's file cannot be read."""
    try:
        return login_of(module.params)
    except OSError as error:
        module.fail_json(msg=f"ca_file is '{module.params['ca_file']}', wanted a certificate: {error}")
        raise


class ReplyError(Exception):
    """Redis answered with an error."""


class Client:
    """One connection. Every call ends after the time-out, in seconds."""

    def __init__(
        self, address: str, port: int, user: str, password: str, timeout: float = 2.0, tls: Tls | None = None
    ) -> None:
        self._socket = connect(address, port, timeout, tls)
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

    @property
    def certificate(self) -> bytes:
        """What the server showed, empty without TLS."""
        secure = self._socket
        return secure.getpeercert(binary_form=True) or b"" if isinstance(secure, ssl.SSLSocket) else b""

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


def connect(address: str, port: int, timeout: float, tls: Tls | None) -> socket.socket:
    """A connection to Redis or Sentinel. Raises OSError, also when the other end cannot prove its address."""
    found = socket.create_connection((address, port), timeout=timeout)
    if tls is None or (tls.plain_too and speaks_plain(found)):
        return found
    if tls.plain_too:
        found.close()
        found = socket.create_connection((address, port), timeout=timeout)
    try:
        return tls.context.wrap_socket(found, server_hostname=address)
    except BaseException:
        found.close()
        raise


def speaks_plain(connection: socket.socket) -> bool:
    """Whether the other end answers without TLS, asked without a password. One that speaks TLS ends the connection."""
    reply = b""
    try:
        connection.sendall(b"PING\r\n")
        while not reply.endswith(b"\n") and (more := connection.recv(512)):
            reply += more
    except ConnectionError:
        return False
    return reply[:1] in (b"+", b"-")


def ask(member: Mapping[str, str], port: int, user: str, password: str, timeout: float, tls: Tls | None = None) -> Node:
    """What one member says about itself."""
    name, address = member["name"], member["address"]
    try:
        with Client(address, port, user, password, timeout, tls) as client:
            return node_from_info(name, address, parse_info(client.call("INFO")))
    except ConnectionRefusedError:
        return Node(name, address, REFUSED, detail="connection refused")
    except (ReplyError, ssl.SSLCertVerificationError) as error:
        return Node(name, address, DENIED, detail=str(error))
    except (OSError, ValueError) as error:
        return Node(name, address, UNREACHABLE, detail=str(error) or type(error).__name__)


def ask_all(
    members: Sequence[Mapping[str, str]], port: int, user: str, password: str, timeout: float, tls: Tls | None = None
) -> list[Node]:
    """What all members say, asked at the same time, in the order of the members."""
    with ThreadPoolExecutor(max_workers=max(len(members), 1)) as pool:
        return list(pool.map(lambda member: ask(member, port, user, password, timeout, tls), members))


def pairs(reply: Sequence[str]) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def differing_settings(client: Client, wanted: Mapping[str, str]) -> dict[str, str]:
    """The wanted settings that the running Redis does not have."""
    return settings_to_set(wanted, pairs(client.call("CONFIG", "GET", *wanted))) if wanted else {}


def shows_another(client: Client, certificate_file: str | None) -> bool:
    """Whether Redis speaks TLS with another certificate than the one in the file: it reads it when it is told to."""
    text = read_text(certificate_file) if certificate_file else ""
    first = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if not first or not client.certificate:
        return False
    return client.certificate != ssl.PEM_cert_to_DER_cert(first[0])


def end_connections(client: Client) -> int:
    """Ends the connections of everybody else, and that to the master. How many there were."""
    kinds = ("normal", "pubsub", "master")
    return sum(int(client.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")) for kind in kinds)


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
