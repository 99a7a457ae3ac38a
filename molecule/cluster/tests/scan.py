# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host of the lab, by its standard input and output: which of these addresses and ports can it connect to?

Asked {"targets": [address, ...], "ports": [port, ...], "seconds": how long one may take}, it answers with a list of
[address, port].
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys

AT_ONCE = 4000


async def knock(address: str, port: int, seconds: float) -> bool:
    """Whether somebody opens."""
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    connection.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(connection, (address, port)), seconds)
        # A port to which the kernel connected itself, because it picked it for this very connection.
        return connection.getsockname() != connection.getpeername()
    except (OSError, TimeoutError):
        return False
    finally:
        connection.close()


async def scan(targets: list[str], ports: list[int], seconds: float) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    waiting = iter([(address, port) for port in ports for address in targets])

    async def work() -> None:
        for address, port in waiting:
            if await knock(address, port, seconds):
                found.append((address, port))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return sorted(found)


if __name__ == "__main__":
    # As many sockets as are allowed: a session begins with room for 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asyncio.run(scan(**json.load(sys.stdin)))))
