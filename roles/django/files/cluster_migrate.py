# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply the migrations of a release, once, whoever else may try at the same time.

Run by `django-run` in the virtual environment of the release that is about to be activated. Takes a PostgreSQL advisory
lock for the session, then lets `migrate` run with a short lock_timeout: a migration that waits for a busy table gives
up and is tried again rather than let every query of the site queue up behind it. Prints one line of JSON at the end.

usage: cluster_migrate.py [--check] [--lock-wait SECONDS] [--retries N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from typing import Any

# Any fixed number will do; two clusters in one PostgreSQL have two databases, and locks belong to a database.
ADVISORY_LOCK = 0x464C4F54
LOCK_TIMEOUT = "2s"


def _say(**result: Any) -> None:
    print(json.dumps(result), flush=True)


def _plan(connection: Any) -> list[str]:
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    return [f"{item.app_label}.{item.name}" for item, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]


def _take_lock(connection: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [ADVISORY_LOCK])
            if cursor.fetchone()[0]:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)


def _migrate(retries: int) -> None:
    """Run migrate; a migration that got no lock on its table is tried again after a pause that grows."""
    from django.core.management import call_command
    from django.db import OperationalError, connections

    for attempt in range(retries + 1):
        try:
            call_command("migrate", interactive=False, verbosity=1, stdout=sys.stderr)
            return
        except OperationalError as error:
            timed_out = "lock timeout" in str(error) or getattr(error.__cause__, "sqlstate", "") == "55P03"
            if not timed_out or attempt == retries:
                raise
            pause = min(2.0 * (attempt + 1), 10.0)
            print(f"a table was locked for more than {LOCK_TIMEOUT}; again in {pause:g} s", file=sys.stderr)
            # A schema editor that failed at its end leaves its connection inside a transaction for good: take another.
            failed = connections["default"]
            connections["default"] = connections.create_connection("default")
            if failed.connection is not None:
                failed.connection.close()
            time.sleep(pause)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell what would be applied")
    parser.add_argument("--lock-wait", type=float, default=300.0, help="seconds to wait for another migration")
    parser.add_argument("--retries", type=int, default=5, help="how often to try again after a lock timeout")
    arguments = parser.parse_args()

    import django

    django.setup()
    from django.db import connection, connections

    pending = _plan(connection)
    if not pending or arguments.check:
        _say(changed=bool(pending), migrations=pending)
        return 0
    if connection.vendor != "postgresql":
        _migrate(0)
        _say(changed=True, migrations=pending)
        return 0

    # The lock is held on a connection of its own: a migration may close the one it runs on.
    guard = connections.create_connection("default")
    try:
        if not _take_lock(guard, arguments.lock_wait):
            _say(changed=False, error=f"another migration held the lock for {arguments.lock_wait:g} s")
            return 1
        pending = _plan(connection)
        if pending:
            connection.close()
            options = connection.settings_dict["OPTIONS"]
            options["options"] = f"{options.get('options', '')} -c lock_timeout={LOCK_TIMEOUT}".strip()
            _migrate(arguments.retries)
        _say(changed=bool(pending), migrations=pending)
        return 0
    finally:
        guard.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as problem:
        traceback.print_exc()
        _say(changed=False, error=f"{type(problem).__name__}: {problem}")
        sys.exit(1)
