# SPDX-License-Identifier: GPL-3.0-or-later
"""Django writes all the time, on several nodes, through the settings it has there, and remembers what it was told."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import Lab, wait_until

TABLE = "flotilla_test_writes"

# Like one request after the other: a connection that broke is closed at the end of the request, a kept one is checked.
PROGRAM = f"""
import os, sys, threading, time
import django
django.setup()
from django.db import close_old_connections, connection

node, run = sys.argv[1:]
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
number = 0
while True:
    number += 1
    began = time.time()
    try:
        close_old_connections()
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO {TABLE} VALUES (%s, %s, %s) RETURNING current_setting('cluster_name')", [run, node, number]
            )
            server = cursor.fetchone()[0]
        print("told", number, began, time.time(), server, flush=True)
    except Exception as error:
        print("error", number, began, time.time(), type(error).__name__, " ".join(str(error).split())[:200], flush=True)
        connection.close()
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class Write:
    """One write that Django was told had succeeded."""

    number: int
    began: float
    ended: float
    server: str


@dataclass
class Writes:
    """What the nodes were told, and what is there."""

    run: str
    told: dict[str, list[Write]] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=dict)

    def gap(self, node: str) -> float:
        """The longest time between two writes that succeeded, in seconds."""
        ends = [write.ended for write in self.told[node]]
        return max(after - before for before, after in itertools.pairwise(ends))

    @property
    def gaps(self) -> list[float]:
        return [self.gap(node) for node in self.told]

    @property
    def servers(self) -> list[str]:
        """Who took the writes of all nodes, in the order of their ends, without repetitions."""
        writes = sorted((write for told in self.told.values() for write in told), key=lambda write: write.ended)
        found: list[str] = []
        for write in writes:
            if not found or found[-1] != write.server:
                found.append(write.server)
        return found

    def lost(self, lab: Lab, server: str) -> list[str]:
        """Writes that Django was told had succeeded and that are not there."""
        there = set(
            lab.sql(server, f"SELECT node || ' ' || number FROM {TABLE} WHERE run = '{self.run}'", "django").split("\n")
        )
        return [
            f"{node} {write.number}" for node, told in self.told.items() for write in told
            if f"{node} {write.number}" not in there
        ]  # fmt: skip

    def doubled(self, lab: Lab, server: str) -> str:
        """Writes that are there more than once."""
        return lab.sql(
            server,
            f"SELECT node, number FROM {TABLE} WHERE run = '{self.run}' GROUP BY 1, 2 HAVING count(*) > 1",
            "django",
        )


def _told(output: Path, number: int) -> bool:
    """Whether a node was told at least so many times that a write had succeeded."""
    return output.read_text().count("told ") >= number


@contextlib.contextmanager
def writing(lab: Lab, run: str, nodes: Sequence[str] = ("app1", "app2")) -> Iterator[Writes]:
    """Writes for the length of a with block; what came of them is complete afterwards."""
    lab.manage(
        nodes[0],
        "from django.db import connection\n"
        f"connection.cursor().execute('CREATE TABLE IF NOT EXISTS {TABLE} (run text, node text, number int)')\n",
    )
    writes = Writes(run, {node: [] for node in nodes}, {node: [] for node in nodes})
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = []
        for node in nodes:
            lab.ssh(node, "cat > /tmp/flotilla-writes.py", PROGRAM)
            output = stack.enter_context((directory / node).open("w"))
            command = ["ssh", "-F", str(lab.directory / "ssh_config"), "-S", "none", node]
            process = subprocess.Popen(
                [*command, f"django-run python /tmp/flotilla-writes.py {node} {run}"],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True, env=lab.environment,
            )  # fmt: skip
            running.append((node, process))
        try:
            for node, _process in running:
                wait_until(functools.partial(_told, directory / node, 5), 30, f"{node} writes", 0.1)
            yield writes
            # Whatever happened, they are well in the end.
            for node, _process in running:
                more = (directory / node).read_text().count("told ") + 5
                wait_until(functools.partial(_told, directory / node, more), 60, f"{node} writes again", 0.1)
        finally:
            for _node, process in running:
                with contextlib.suppress(OSError):
                    assert process.stdin
                    process.stdin.close()
            for _node, process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
            for node, _process in running:
                for line in (directory / node).read_text().splitlines():
                    words = line.split(" ")
                    if words[0] == "told" and len(words) == 5:
                        writes.told[node].append(Write(int(words[1]), float(words[2]), float(words[3]), words[4]))
                    else:
                        writes.errors[node].append(line)


PGBENCH = "flotilla_test_pgbench"
PGBENCH_CLIENTS = 2
# Short runs, one after the other, so that the last one tells what it was told, too.
PGBENCH_LOOP = (
    'while [ -e /run/flotilla-pgbench ]; do [ "$(psql -qAtXc "SELECT pg_is_in_recovery()")" = f ] &&'
    f" pgbench -n -c {PGBENCH_CLIENTS} -R {{rate}} -T 3 {PGBENCH} 2>&1; sleep 0.5; done"
)
PGBENCH_BOOKS = """
SELECT count(*), coalesce(sum(delta), 0) = ALL (
    SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
    UNION ALL SELECT sum(bbalance) FROM pgbench_branches
) FROM pgbench_history
"""


@dataclass
class Pgbench:
    """What pgbench was told, and what is there."""

    told: int = 0  # transactions that succeeded
    broken: int = 0  # runs that broke off: each client may have one more transaction there than it was told
    there: int = 0
    balanced: bool = False


@contextlib.contextmanager
def pgbench(lab: Lab, members: Sequence[str], primary: Callable[[], str], rate: int = 40) -> Iterator[Pgbench]:
    """pgbench for the length of a with block, on whichever member is the primary; complete afterwards."""
    lab.sql(primary(), f"DROP DATABASE IF EXISTS {PGBENCH};\nCREATE DATABASE {PGBENCH};")
    path = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)"
    lab.ssh(primary(), f"{path}; runuser -u postgres -- pgbench -i -q {PGBENCH} 2>&1")
    found = Pgbench()
    loop = PGBENCH_LOOP.format(rate=rate)
    for member in members:
        run = f"systemd-run --quiet --collect --unit=flotilla-pgbench --uid=postgres -E PATH=$PATH bash -c '{loop}'"
        lab.ssh(member, f"{path}; systemctl stop flotilla-pgbench; touch /run/flotilla-pgbench; {run}")
    began = time.time()
    try:
        yield found
    finally:
        for member in members:
            lab.ssh(member, "rm -f /run/flotilla-pgbench")
        for member in members:
            lab.ssh(member, "while systemctl is-active -q flotilla-pgbench; do sleep 0.2; done")
            said = lab.ssh(member, f"journalctl -q -o cat -u flotilla-pgbench --since @{began:.0f}")
            counts = re.findall(r"^number of transactions actually processed: (\d+)", said, re.MULTILINE)
            found.told += sum(map(int, counts))
            found.broken += said.count("Run was aborted")
    there, balanced = lab.sql(primary(), PGBENCH_BOOKS, PGBENCH).split("|")
    found.there, found.balanced = int(there), balanced == "t"
    lab.sql(primary(), f"DROP DATABASE {PGBENCH}")


def switch_by_hand(lab: Lab, old: str, new: str) -> None:
    """What a move costs at least: a fast stop and pg_promote, nothing in between."""
    version = lab.sql(new, "SHOW server_version_num")[:2]
    data = f"/var/lib/postgresql/{version}/main"
    program = f"/usr/lib/postgresql/{version}/bin/pg_ctl"
    lab.ssh(new, "true")  # both connections are open
    lab.sql(old, "CHECKPOINT")
    lab.ssh(old, f"runuser -u postgres -- {program} -D {data} -m fast -s stop")
    assert lab.sql(new, "SELECT pg_promote()") == "t"
    lab.ssh(old, f"runuser -u postgres -- touch {data}/standby.signal; systemctl start postgresql@{version}-main")
