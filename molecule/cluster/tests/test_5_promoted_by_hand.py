# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody promoted a replica by hand: site.yml asks who the primary is and leaves it so."""

from __future__ import annotations

import uuid

from tests.cluster import Browser, Lab, wait_until


def test_site_follows_a_primary_that_was_promoted_by_hand(lab: Lab) -> None:
    version = lab.sql("db1", "SHOW server_version_num")[:2]
    lab.ssh("db1", f"systemctl stop postgresql@{version}-main")
    assert lab.sql("db2", "SELECT pg_promote(true, 30)") == "t"
    wait_until(
        lambda: lab.sql("db2", "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'") == "db3",
        30, "db3 follows db2 by itself",
    )  # fmt: skip

    run = lab.playbook()
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
    assert "db1" in run.output
    assert lab.ssh("db1", f"systemctl is-active postgresql@{version}-main", check=False).strip() == "inactive", (
        "a stopped former primary must not be started: it would be a second primary"
    )
    assert lab.sql("db2", "SELECT pg_is_in_recovery()") == "f"
    assert lab.sql("db3", "SELECT pg_is_in_recovery()") == "t"

    # The site writes to the new primary by itself.
    browser = Browser(lab, "lb1")
    token = uuid.uuid4().hex
    assert browser.post_form("/guestbook/", {"token": token, "name": "A test", "message": "After"}).status_code == 302
    assert browser.where()["database_write"] == "db2"


def test_the_former_primary_comes_back_as_a_replica_on_a_new_disk(lab: Lab) -> None:
    lab.tool("rebuild", "db1")
    run = lab.playbook("--limit", "db1")
    assert run.returncode == 0, run.output[-5000:]
    assert lab.sql("db1", "SELECT pg_is_in_recovery()") == "t"
    wait_until(
        lambda: lab.sql("db2", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2",
        30,
        "db1 and db3 follow db2",
    )
