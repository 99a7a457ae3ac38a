#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the state of HAProxy's servers (drained, down, changed weight) over a reload.

Usage: haproxy-save-state ADMIN_SOCKET CONFIGURATION STATE_FILE

Called before a reload, when CONFIGURATION is already the new one. HAProxy would let the saved lines win over the
configuration, so only the servers that are the same in both (name, address, port) are kept; a server that moved
starts as a new one. Of weights HAProxy itself takes the saved one only while the configured one is unchanged.

A reload must never fail for want of a state: without an answer from the socket the state file is removed.
"""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

SERVER = re.compile(r"^\s*server\s+(?P<name>\S+)\s+(?P<address>\S+):(?P<port>\d+)(\s|$)")
SECTION = re.compile(r"^(?P<keyword>[a-z]\S*)(\s+(?P<name>\S+))?")


def configured_servers(configuration: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Address and port of each server by (backend, server)."""
    servers: dict[tuple[str, str], tuple[str, str]] = {}
    backend = ""
    for line in configuration.splitlines():
        section = SECTION.match(line)
        if section:
            backend = section["name"] or "" if section["keyword"] in ("backend", "listen") else ""
        elif backend and (server := SERVER.match(line)):
            servers[backend, server["name"]] = (server["address"].strip("[]"), server["port"])
    return servers


def kept_state(state: str, servers: dict[tuple[str, str], tuple[str, str]]) -> str:
    """The state file without the servers whose configuration changed. Raises ValueError for an unknown format."""
    version, header, *lines = [*filter(str.strip, state.splitlines()), "", ""]
    columns = header.lstrip("# ").split()
    if version != "1" or not {"be_name", "srv_name", "srv_addr", "srv_port"} <= set(columns):
        raise ValueError(f"unknown format of the server state: {version!r}, {header!r}")
    kept = []
    for line in filter(None, lines):
        field = dict(zip(columns, line.split(), strict=False))
        if servers.get((field["be_name"], field["srv_name"])) == (field["srv_addr"], field["srv_port"]):
            # Whether a server is spoken to by TLS is for the configuration to say: HAProxy takes a 0 as an order to
            # speak plain all the same (while its checks speak TLS), and a 1 only where the configuration knows how.
            field.update({"srv_use_ssl": "1"} if "srv_use_ssl" in field else {})
            kept.append(" ".join(field.values()))
    return "\n".join([version, header, *kept]) + "\n"


def ask(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(command.encode() + b"\n")
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer.decode()


def main(admin_socket: str, configuration: str, state_file: str) -> int:
    target = Path(state_file)
    try:
        servers = configured_servers(Path(configuration).read_text(encoding="utf-8"))
        state = kept_state(ask(admin_socket, "show servers state"), servers)
        temporary = target.with_name(target.name + ".new")
        temporary.write_text(state, encoding="utf-8")
        temporary.replace(target)
    except (OSError, ValueError) as error:
        print(f"the state of the servers is not kept over this reload: {error}", file=sys.stderr)
        target.unlink(missing_ok=True)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
