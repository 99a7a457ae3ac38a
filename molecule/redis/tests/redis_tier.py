# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the Redis tier share."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as sentinel_plan

from tests.cluster import Lab, Recap

HOSTS = ["cache1", "cache2", "cache3"]
USERS = {
    "admin": "redis_admin_password",
    "replication": "redis_replication_password",
    "sentinel": "redis_sentinel_password",
    "django": "redis_password",
    "monitoring": "redis_monitoring_password",
}
DOWN_AFTER = 5.0  # seconds, the role's default


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

    def sentinel_client(self, host: str, user: str = "admin") -> redis_io.Client:
        return redis_io.Client(self.address[host], 26379, user, self.password(user), 3)

    def ask_sentinel(self, host: str, *words: str, user: str = "admin") -> Any:
        with self.sentinel_client(host, user) as client:
            return client.call(*words)

    def sentinels(self) -> dict[str, sentinel_plan.Sentinel]:
        members = [{"name": host, "address": self.address[host]} for host in HOSTS]
        found = sentinel_io.ask_all(members, 26379, "admin", self.password("admin"), 3)
        return {sentinel.name: sentinel for sentinel in found}

    def master(self) -> str:
        """The one live master."""
        return next(host for host, follows in self.shape().items() if follows == "master")

    def is_whole(self, master: str = "") -> bool:
        """One master, replicas in step, and Sentinels that agree, calmly and with one another."""
        shape = self.shape()
        masters = [host for host, follows in shape.items() if follows == "master"]
        if len(masters) != 1 or masters[0] != (master or masters[0]):
            return False
        if any(follows not in ("master", masters[0]) for follows in shape.values()):
            return False
        sentinels = self.sentinels()
        at = self.address[masters[0]]
        return all(
            not sentinel_plan.unsettled(own, list(sentinels.values()), at) for own in sentinels.values()
        ) and all(own.is_calm for own in sentinels.values())

    def move(self, new: str) -> Recap:
        return self.lab.playbook(
            "--limit", "cache*", "-e", f"redis_new_master={new}", playbook="playbooks/redis_switchover.yml"
        )

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


class Writer:
    """A client of the application that writes one key after the other, and finds the master by Sentinel."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.run = time.time_ns()
        self.acknowledged: list[tuple[int, float]] = []  # number and time

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_for(lambda: len(self.acknowledged) > 100)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _connect(self) -> redis_io.Client:
        for host in HOSTS:
            try:
                with redis_io.Client(self._tier.address[host], 26379, "django", self._password, 0.5) as sentinel:
                    address = sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinel_plan.WATCHED)[0]
                client = redis_io.Client(address, 6379, "django", self._password, 1)
            except (OSError, redis_io.ReplyError):
                continue
            if client.call("ROLE")[0] == "master":
                return client
            client.close()
        raise ConnectionError("no master")

    def _run(self) -> None:
        self._password = self._tier.password("django")
        client, number = None, 0
        while not self._ended.is_set():
            number += 1
            try:
                client = client or self._connect()
                client.call("SET", f"test:{self.run}:{number}", str(number))
                self.acknowledged.append((number, time.monotonic()))
                time.sleep(0.001)
            except (OSError, redis_io.ReplyError):
                if client:
                    client.close()
                client = None
                time.sleep(0.05)

    def gap(self) -> float:
        """The longest time between two acknowledged writes, in seconds."""
        times = [moment for _number, moment in self.acknowledged]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def lost(self) -> list[int]:
        """The acknowledged writes that the master does not have."""
        with self._tier.client(self._tier.master(), "django") as client:
            return [
                number for number, _ in self.acknowledged if client.call("GET", f"test:{self.run}:{number}") is None
            ]
