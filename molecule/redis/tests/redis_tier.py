# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the Redis tier share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan

from tests.cluster import Lab, Recap

HOSTS = ["cache1", "cache2", "cache3"]
USERS = {"admin": "redis_admin_password", "replication": "redis_replication_password", "django": "redis_password"}


class Tier:
    """The three members, asked over the network as any client would."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.address = {host: lab.address(host) for host in HOSTS}

    def password(self, user: str) -> str:
        return (self.lab.directory / "secrets" / USERS[user]).read_text(encoding="ascii").strip()

    def client(self, host: str, user: str = "admin") -> redis_io.Client:
        return redis_io.Client(self.address[host], 6379, user, self.password(user), 5)

    def call(self, host: str, *words: str, user: str = "admin") -> Any:
        with self.client(host, user) as client:
            return client.call(*words)

    def nodes(self) -> dict[str, redis_plan.Node]:
        members = [{"name": host, "address": self.address[host]} for host in HOSTS]
        return {node.name: node for node in redis_io.ask_all(members, 6379, "admin", self.password("admin"), 3)}

    def shape(self) -> dict[str, str]:
        """Whom each member follows: a name for a replica in step, "master", or what is wrong."""
        names = {address: host for host, address in self.address.items()}
        found = {}
        for name, node in self.nodes().items():
            link = "" if node.link_up else " (link down)"
            follows = names.get(node.master_address, node.master_address) + link
            found[name] = {"master": "master", "replica": follows}.get(node.role, node.state)
        return found

    def converge(self, *arguments: str) -> Recap:
        return self.lab.playbook(*arguments, playbook="molecule/redis/converge.yml")


def wait_for(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
