# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases come and go, servers break and come back. The tests run in this order."""

from __future__ import annotations

import json
import re
import time

from static_tier import FIRST, SECOND, Tier

HOSTS = ("static1", "static2")


def test_a_broken_configuration_never_replaces_the_running_one(tier: Tier) -> None:
    question = (
        "sha256sum /etc/nginx/nginx.conf; systemctl show nginx -p MainPID -p StateChangeTimestampMonotonic; pgrep nginx"
    )
    before = {host: tier.lab.ssh(host, question) for host in HOSTS}
    recap = tier.play("converge", "-e", '{"nginx_static_hashed_patterns": ["(unclosed"]}')
    assert recap.returncode != 0
    assert "missing closing parenthesis" in recap.output
    assert {host: tier.lab.ssh(host, question) for host in HOSTS} == before
    assert tier.get("static1", "/static/robots.txt").status == 200
    # Putting a file back makes it newer than the last reload, so the next run reloads once.
    assert tier.play("converge").returncode == 0


def test_second_release_adds(tier: Tier) -> None:
    for host in HOSTS:
        assert tier.put(host, "r2-static.tar.gz", SECOND.pack()) == 201
    check = tier.play("publish", "--check", "--diff")
    assert "+ css/site.ba9876543210.css" in check.output
    assert "~ robots.txt" in check.output
    assert "- robots.txt.br" in check.output
    assert tier.get("static1", "/static/css/site.ba9876543210.css").status == 404
    assert set(tier.publish().changed) == set(HOSTS)
    for host in HOSTS:
        old = tier.get(host, "/static/css/site.0123456789ab.css", Accept_Encoding="br")
        assert old.body == FIRST.files["css/site.0123456789ab.css.br"]
        assert tier.get(host, "/static/css/site.ba9876543210.css").status == 200
        assert tier.get(host, "/static/robots.txt", Accept_Encoding="br").body == b"second\n"


def test_both_servers_hold_the_same(tier: Tier) -> None:
    assert tier.sums("static1") == tier.sums("static2") != ""


def test_run_again_changes_nothing(tier: Tier) -> None:
    for arguments in ([], ["--check", "--diff"]):
        recap = tier.play("converge", *arguments)
        assert recap.returncode == 0, recap.output
        assert recap.changed == {}, recap.changed_tasks


def test_a_server_that_lost_everything_gets_it_from_its_peer(tier: Tier) -> None:
    tier.wipe("static2")
    assert tier.get("static2", "/-/health").status == 503
    assert set(tier.publish().changed) == {"static2"}
    assert tier.get("static2", "/-/health").status == 200
    assert tier.sums("static1") == tier.sums("static2")
    assert tier.publish().changed == {}


def test_a_pack_with_another_hash_is_refused(tier: Tier) -> None:
    pack = {"release_id": "r2", "file": "r2-static.tar.gz", "sha256": "0" * 64}
    packs = json.dumps({"nginx_static_publish_packs": [pack]})
    recap = tier.play("publish", "-e", packs)
    assert recap.returncode != 0
    assert "its sha256 is" in recap.output


def test_only_releases_that_are_not_kept_go(tier: Tier) -> None:
    tier.publish("-e", '{"nginx_static_publish_keep": ["r2"], "nginx_static_publish_current": "r2"}')
    for host in HOSTS:
        assert tier.get(host, "/static/css/site.0123456789ab.css").status == 404
        assert tier.get(host, "/static/css/site.css").status == 200
        assert tier.lab.ssh(host, "cd /srv/static/files && find . -type f | sort").split() == [
            f"./{name}" for name in sorted(SECOND.files)
        ]
        assert tier.lab.ssh(host, "ls -A /srv/static/releases").split() == ["r2-static.tar.gz"]
    assert tier.publish().changed == {}


def test_nginx_that_died_comes_back(tier: Tier) -> None:
    tier.lab.ssh("static1", "kill -9 $(cat /run/nginx.pid)")
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            if (
                tier.get("static1", "/-/health").status == 200
                and "active" in tier.lab.ssh("static1", "systemctl is-active nginx", check=False).split()
            ):
                break
        except OSError:
            pass
        time.sleep(0.3)
    else:
        raise AssertionError("nginx is not back after 15 s")


def test_unit_is_sandboxed(tier: Tier) -> None:
    exposure = tier.lab.ssh("static1", "systemd-analyze security nginx --no-pager | tail -1")
    match = re.search(r"nginx.service: ([0-9.]+)", exposure)
    assert match, exposure
    assert float(match[1]) < 4.5, exposure
