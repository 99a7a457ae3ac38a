#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives up the shared addresses of a balancer without losing a request, and says who holds them.

Usage: shared-address status ADDRESS...
       shared-address drain --timeout SECONDS [--force] ADDRESS...
       shared-address undrain ADDRESS...

A connection lives on the balancer that accepted it, so the address moves when there is none:
1. HAProxy ends each connection with its next answer; idle ones end by themselves within the keep-alive time.
2. New connections are dropped in silence for at most two seconds, while the last requests end. Their clients knock
   again after one second, and by then the next holder opens. The kernel forgets the rule if this program dies.
3. With the door still closed keepalived is told, and this waits until the address is gone: a connection that came in
   after the last look would die with it. The door stays closed until the next holder has it: hosts that forward packets
   would send those for the address back and forth, and the client would hear that there is no way.
When requests take longer, the door is opened again and 2. is tried again, until the time is over.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ADMIN_SOCKET = "/run/haproxy/admin.sock"
HAPROXY_CONFIG = Path("/etc/haproxy/haproxy.cfg")
DRAINED = Path("/etc/keepalived/drained")
TABLE = "inet flotilla_shared_address"
HOLD = 2.0  # seconds; the second knock of a client comes after 1, the third after 3
PAUSE = 3.0  # between two attempts
GIVE_UP = 5.0  # seconds that keepalived has
HANDOVER = 0.5  # seconds that the next holder has
# States of a connection in which its client still lacks something, as `ss` calls them, each with how many times the
# kernel sends again before the client is taken to be gone. Of one whose answer is not written yet HAProxy decides that.
OPEN = {"ESTAB": None, "CLOSE-WAIT": None, "SYN-RECV": 1, "FIN-WAIT-1": 2, "LAST-ACK": 2, "CLOSING": 2}


def run(*command: str, stdin: str = "", check: bool = True) -> str:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=check).stdout


def haproxy(command: str) -> str:
    """The answer of HAProxy's administration."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(ADMIN_SOCKET)
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


def connected(sockets: str) -> int:
    """How many connections of `ss --options` have a client that waits for something.

    The kernel is asked and not HAProxy, which knows none that is being made and none whose answer it has handed over.
    """
    count = 0
    for line in sockets.splitlines():
        state = line.split()[0]
        if state in OPEN:
            limit = OPEN[state]
            sent_again = re.search(r"timer:\(on,[^,)]*,(\d+)\)", line)
            count += limit is None or sent_again is None or int(sent_again[1]) < limit
    return count


def clients_of(addresses: list[str], config: str) -> str:
    """What `ss` is asked for: connections to HAProxy at these addresses. Somebody's SSH session holds nothing up."""
    local = " or ".join(f"src [{item}]" if ":" in item else f"src {item}" for item in addresses)
    bound = dict.fromkeys(re.findall(r"^\s*bind \S*:(\d+)\b", config, re.MULTILINE))
    return f"( {local} ) and ( {' or '.join(f'sport = :{port}' for port in bound)} )"


def connections(clients: str) -> int:
    """How many clients are connected and wait for something."""
    return connected(run("ss", "--no-header", "--tcp", "--numeric", "--all", "--options", clients))


def close_connections(wanted: bool) -> None:
    """Whether each answer ends its connection."""
    answer = haproxy(f"experimental-mode on; set var proc.closing bool({str(wanted).lower()})").strip()
    if answer:
        raise RuntimeError(f"HAProxy refused: {answer}")


def keep_alive_seconds(config: str) -> float:
    """How long HAProxy leaves an idle connection open."""
    match = re.search(r"^\s*timeout http-keep-alive (\d+)(us|ms|s|m|h|d)?\s*$", config, re.MULTILINE)
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    return int(match[1]) * units[match[2] or "ms"] if match else 0.0


def drop_new(addresses: list[str]) -> None:
    """Drop new connections to the addresses until open_again(), or for some seconds if this program dies."""
    rules, elements = "", ""
    for name, version in (("ip", 4), ("ip6", 6)):
        wanted = [item for item in addresses if ipaddress.ip_address(item).version == version]
        if wanted:
            lasting = ", ".join(f"{item} timeout {int(HOLD + GIVE_UP)}s" for item in wanted)
            elements += f"set {name}_closed {{ type ipv{version}_addr; flags timeout; elements = {{ {lasting} }}; }}\n"
            rules += f"{name} daddr @{name}_closed tcp flags & (syn | ack) == syn drop\n"
    open_again()
    chain = f"chain closed {{ type filter hook prerouting priority raw; policy accept;\n{rules} }}"
    run("nft", "-f", "-", stdin=f"table {TABLE} {{\n{elements}{chain}\n}}\n")


def open_again() -> None:
    run("nft", "delete", "table", *TABLE.split(), check=False)


def held(addresses: list[str]) -> list[str]:
    """Those of the addresses that are on this host."""
    here = {
        item.get("local") for link in json.loads(run("ip", "-json", "address", "show")) for item in link["addr_info"]
    }
    return [item for item in addresses if item in here]


def ended(clients: str, seconds: float) -> bool:
    """Whether no client is connected any more, twice in a row, within the time."""
    deadline, quiet = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        quiet = quiet + 1 if connections(clients) == 0 else 0
        if quiet == 2:
            return True
        time.sleep(0.05)
    return False


def give_up(addresses: list[str]) -> None:
    """Tell keepalived, and wait until the addresses are gone."""
    DRAINED.write_text("1\n")
    deadline = time.monotonic() + GIVE_UP
    while left := held(addresses):
        if time.monotonic() > deadline:
            DRAINED.write_text("0\n")
            raise RuntimeError(f"keepalived did not give up {', '.join(left)} within {GIVE_UP:g} seconds: does it run?")
        time.sleep(0.01)


def drain(addresses: list[str], timeout: float, force: bool) -> bool:
    """Give up the addresses; whether that changed anything."""
    if DRAINED.exists() and DRAINED.read_text().strip() == "1" and not held(addresses):
        return False
    if not held(addresses) or not haproxy_answers():
        give_up(addresses)
        return True
    try:
        close_connections(True)
        config = HAPROXY_CONFIG.read_text()
        clients = clients_of(addresses, config)
        ended(clients, keep_alive_seconds(config) + 1)
        wait_for_the_last(addresses, clients, timeout, force)
        give_up(addresses)
        time.sleep(HANDOVER)
    finally:
        open_again()
        close_connections(False)
    return True


def wait_for_the_last(addresses: list[str], clients: str, timeout: float, force: bool) -> None:
    """Hold new connections back until there is no old one; they stay held back when this returns."""
    deadline = time.monotonic() + timeout
    while True:
        drop_new(addresses)
        # The rest of the time is for giving up and for the next holder.
        if ended(clients, HOLD - 0.8):
            return
        if time.monotonic() >= deadline:
            if force:
                return
            raise RuntimeError(
                f"{connections(clients)} connections had not ended after {timeout:g} s; nothing was moved. "
                "drain_timeout waits longer, drain_on_timeout=shutdown cuts them"
            )
        open_again()
        time.sleep(PAUSE)


def haproxy_answers() -> bool:
    try:
        return bool(haproxy("show info"))
    except OSError:
        return False


def undrain() -> bool:
    if DRAINED.exists() and DRAINED.read_text().strip() == "0":
        return False
    DRAINED.write_text("0\n")
    return True


def status(addresses: list[str]) -> dict[str, object]:
    return {
        "held": held(addresses),
        "drained": DRAINED.exists() and DRAINED.read_text().strip() == "1",
        "ready": haproxy_answers() and run("systemctl", "is-active", "keepalived", check=False).strip() == "active",
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["status", "drain", "undrain"])
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.command == "status":
            answer: dict[str, object] = status(arguments.addresses)
        elif arguments.command == "drain":
            answer = {"changed": drain(arguments.addresses, arguments.timeout, arguments.force)}
        else:
            answer = {"changed": undrain()}
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"shared-address: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
