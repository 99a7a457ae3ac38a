# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the PostgreSQL tier share."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster import Lab, Recap, wait_until

HOSTS = ["db1", "db2", "db3"]


class Tier:
    """The three members, asked as their own superuser, or over the network from one of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.address = {host: lab.address(host) for host in HOSTS}
        self.version = lab.ssh("db1", "ls /usr/lib/postgresql").strip()
        self.unit = f"postgresql@{self.version}-main"
        self.data = f"/var/lib/postgresql/{self.version}/main"

    def secret(self, name: str) -> str:
        return (self.lab.directory / "secrets" / name).read_text(encoding="ascii").strip()

    def sql(self, host: str, query: str) -> str:
        return self.lab.sql(host, query)

    def remote(self, source: str, target: str, query: str, **connection: str) -> str:
        """Connect from one member to another as a user of the network; returns what psql printed, errors too."""
        wanted = {
            "host": self.address[target],
            "dbname": "django",
            "user": "django",
            "password": self.secret("database_password"),
            "connect_timeout": "5",
            **connection,
        }
        conninfo = " ".join(f"{key}={value}" for key, value in wanted.items())
        command = 'read -r conninfo; timeout 8 psql -qAtX -d "$conninfo" 2>&1 || echo status $?'
        return self.lab.ssh(source, command, f"{conninfo}\n{query}\n").strip()

    def converge(self, *arguments: str, **variables: Any) -> Recap:
        extra = ["--extra-vars", json.dumps(variables)] if variables else []
        return self.lab.playbook(*extra, *arguments, playbook="molecule/postgresql/converge.yml")

    def downstreams(self, host: str) -> dict[str, str]:
        rows = self.sql(host, "SELECT application_name, state FROM pg_stat_replication ORDER BY 1").splitlines()
        return dict(row.split("|") for row in rows)

    def wait_streaming(self, host: str, standbys: set[str], seconds: float = 30) -> None:
        wanted = dict.fromkeys(sorted(standbys), "streaming")
        wait_until(lambda: self.downstreams(host) == wanted, seconds, f"{standbys} stream from {host}")

    def started(self, host: str) -> str:
        return self.sql(host, "SELECT pg_postmaster_start_time()")
