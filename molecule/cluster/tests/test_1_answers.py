# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster answers: every node through every balancer, one session everywhere, every write on every replica."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster import DOMAIN, PASSWORD, Browser, Lab, wait_until

APPS = ["app1", "app2", "app3"]


@pytest.mark.parametrize("balancer", ["lb1", "lb2"])
def test_requests_are_spread_evenly(lab: Lab, balancer: str) -> None:
    browser = Browser(lab, balancer)
    counts = Counter(browser.get("/plain/").headers["X-Served-By"] for _ in range(300))
    assert set(counts) == set(APPS)
    assert max(counts.values()) - min(counts.values()) <= 15, counts


def test_no_request_waits_behind_slow_ones_while_a_thread_is_free(lab: Lab) -> None:
    """All threads but one of each node are busy for six seconds: wherever a request comes, one is free for it."""
    busy = len(APPS) * (2 * 4 - 1)
    with ThreadPoolExecutor(busy) as pool:
        slow = [pool.submit(Browser(lab, "lb1").get, "/slow/?seconds=6") for _ in range(busy)]
        time.sleep(1.5)
        browser, took = Browser(lab, "lb1"), []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            began = time.monotonic()
            assert browser.get("/plain/").status_code == 200
            took.append(time.monotonic() - began)
        assert not any(request.done() for request in slow), "the threads were not busy all the time"
        assert {request.result().status_code for request in slow} == {200}
    assert len(took) > 10 and max(took) < 1.0, sorted(took)[-5:]


def test_a_login_is_valid_on_every_node(browser: Browser, user: str) -> None:
    browser.login(user, PASSWORD)
    seen = [browser.where() for _ in range(9)]
    assert {page["node"] for page in seen} == set(APPS)
    assert {page["user"] for page in seen} == {user}
    counters = [page["counter"] for page in seen]
    assert counters == list(range(counters[0], counters[0] + 9)), "the session's counter goes on from node to node"


def test_the_release_is_the_same_everywhere(lab: Lab, browser: Browser) -> None:
    assert len({browser.where()["release"] for _ in range(9)}) == 1
    assert len({lab.ssh(app, "readlink /srv/django/current") for app in APPS}) == 1


def test_reads_and_writes_reach_the_servers_that_serve_them(lab: Lab, browser: Browser) -> None:
    page = browser.where()
    assert page["database_write"] == "db1"
    assert page["database_read"] in {"db2", "db3"}


def test_a_row_written_through_the_site_is_on_every_replica(lab: Lab, browser: Browser) -> None:
    token = uuid.uuid4().hex
    answer = browser.post_form(
        "/guestbook/", {"token": token, "name": "A test", "message": "Written through the balancer"}
    )
    assert answer.status_code == 302
    query = f"SELECT count(*) FROM guestbook_entry WHERE token = '{token}'"
    for server in ["db1", "db2", "db3"]:
        wait_until(lambda server=server: lab_count(lab, server, query) == 1, 5, f"the row on {server}")


def lab_count(lab: Lab, server: str, query: str) -> int:
    return int(lab.ssh(server, "runuser -u postgres -- psql -qAtX django", query))


def test_replicas_stream_with_the_lag_seen_by_the_primary(lab: Lab) -> None:
    rows = lab.sql(
        "db1",
        "SELECT application_name, state, pg_wal_lsn_diff(sent_lsn, replay_lsn) < 1048576"
        " FROM pg_stat_replication ORDER BY 1",
    )
    assert rows.splitlines() == ["db2|streaming|t", "db3|streaming|t"]


def test_the_cache_is_replicated(lab: Lab, browser: Browser) -> None:
    password = lab.variable("cache1", "redis_admin_password")
    command = f"REDISCLI_AUTH={password} redis-cli --user admin info replication"
    replies = [lab.ssh(host, command) for host in ("cache1", "cache2", "cache3")]
    (master,) = [reply for reply in replies if "role:master" in reply]
    assert re.findall(r"slave\d:.*state=(\w+)", master) == ["online", "online"]


def test_clients_cannot_forge_where_they_come_from(browser: Browser) -> None:
    page = browser.where(
        headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http", "X-Request-ID": "forged"}
    )
    assert "203.0.113.9" not in page["client"]
    assert page["secure"] is True
    assert page["request_id"] != "forged"


@pytest.mark.parametrize("path", ["/-/health", "/-/health/deep", "/-/../-/health", "//-/health"])
def test_health_is_not_for_the_world(browser: Browser, path: str) -> None:
    assert browser.get(path).status_code in {400, 403, 404}


@pytest.mark.parametrize("app", APPS)
def test_the_deep_health_check_sees_database_cache_and_migrations(lab: Lab, app: str) -> None:
    answer = Browser(lab, app, port=8000).get("/-/health/deep")
    assert answer.status_code == 200, answer.text


def test_static_files_are_kept_for_a_year_and_are_the_same_on_every_server(lab: Lab, browser: Browser) -> None:
    page = browser.get("/").text
    assets = re.findall(r'"(/static/[^"]+\.[0-9a-f]{12}\.\w+)"', page)
    assert assets, "the page links hashed files"
    for asset in assets:
        answer = browser.get(asset)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        bodies = {Browser(lab, server, port=8080).get(asset).content for server in ["static1", "static2"]}
        assert bodies == {answer.content}


def test_the_balancer_keeps_small_static_files_and_gives_everybody_the_encoding_that_he_asked_for(
    lab: Lab, browser: Browser
) -> None:
    page = browser.get("/").text
    asset = next(iter(re.findall(r'"(/static/[^"]+\.[0-9a-f]{12}\.css)"', page))) + "?of-this-test"
    seen = []
    for encoding in ["identity", "br", "gzip", "identity", "br", "gzip"]:
        answer = browser.get(asset, headers={"Accept-Encoding": encoding})
        seen.append((answer.headers.get("Content-Encoding", "identity"), answer.headers["X-Served-By"] == "<CACHE>"))
    silent = browser.client.build_request("GET", asset, extensions={"sni_hostname": DOMAIN})
    del silent.headers["Accept-Encoding"]
    assert "Content-Encoding" not in browser.client.send(silent).headers
    # The plain one is asked of Nginx each time: HAProxy would give it to those, too, who take a compressed one.
    assert seen == [
        *(("identity", False), ("br", False), ("gzip", False)),
        *(("identity", False), ("br", True), ("gzip", True)),
    ]


def test_plain_http_is_sent_to_https(lab: Lab) -> None:
    answer = Browser(lab, "lb1", port=80).get("/where/")
    assert answer.status_code in {301, 308}
    assert answer.headers["Location"] == "https://flotilla.test/where/"
