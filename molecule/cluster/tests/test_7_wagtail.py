# SPDX-License-Identifier: GPL-3.0-or-later
"""A project that nobody prepared runs on the cluster by inventory variables alone.

The last file of the scenario, since it leaves this project on the lab in place of the example site, with a database of
its own beside the example's. The scenario `single` has the daily tests of this kind: these ask every node.
"""

from __future__ import annotations

import json

import pytest

from tests.cluster import Browser, Lab, wait_until
from tests.wagtail import Site, admin_assets, digest, log_in, put_on

pytestmark = pytest.mark.full
APPS = ["app1", "app2", "app3"]


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    return put_on(lab, "app1")


def statuses(browser: Browser, path: str, requests: int = 12) -> set[tuple[str, int]]:
    """Which node answered with what, over a number of requests."""
    answers = [browser.get(path) for _ in range(requests)]
    return {(answer.headers["X-Served-By"], answer.status_code) for answer in answers}


def test_the_deployment_changes_the_nodes_and_not_the_project(lab: Lab, site: Site) -> None:
    assert set(APPS) <= set(site.first_run.changed), site.first_run.changed
    assert digest(site.directory) == site.digest
    for app in APPS:
        release = json.loads(lab.ssh(app, "cat /srv/django/current/release.json"))
        assert release["settings_module"] == "mysite.settings.production"
        assert release["django"].startswith("5.2."), release


@pytest.mark.parametrize("app", APPS)
def test_the_deep_health_check_is_green(lab: Lab, site: Site, app: str) -> None:
    answer = Browser(lab, app, port=8000).get("/-/health/deep")
    assert answer.status_code == 200, answer.text
    assert {name for name, check in answer.json()["checks"].items() if check["ok"]} == {
        "database",
        "redis",
        "migrations",
        "urls",
    }


def test_the_home_page_answers_on_every_node(lab: Lab, site: Site) -> None:
    browser = Browser(lab, "lb1")
    assert statuses(browser, "/") == {(app, 200) for app in APPS}
    assert "Wagtail" in browser.get("/").text


def test_its_data_is_in_its_own_database_on_every_server(lab: Lab, site: Site) -> None:
    query = f"SELECT count(*) FROM auth_user WHERE username = '{site.username}'"
    ask = "runuser -u postgres -- psql -qAtX wagtail"
    for server in ["db1", "db2", "db3"]:
        wait_until(lambda server=server: lab.ssh(server, ask, query).strip() == "1", 5, f"the user on {server}")


def test_the_admin_goes_on_where_another_node_began(lab: Lab, site: Site) -> None:
    browser = Browser(lab, "lb1")
    assert statuses(browser, "/admin/") == {(app, 302) for app in APPS}, "nobody is logged in yet"

    answer = browser.post_form("/admin/login/", {"username": site.username, "password": site.password})
    assert answer.status_code == 302, answer.text[:500]
    first = answer.headers["X-Served-By"]

    # Every node, among them at least one other than the one that logged in.
    seen = statuses(browser, "/admin/")
    assert seen == {(app, 200) for app in APPS}, f"logged in on {first}"
    page = browser.get("/admin/")
    assert site.username in page.text

    # A form that one node made out is taken by another, and the end of the session is known to all.
    answer = browser.request("POST", "/admin/logout/", headers={"X-CSRFToken": browser.client.cookies["csrftoken"]})
    assert answer.status_code == 302, answer.text[:500]
    assert answer.headers["X-Served-By"] != page.headers["X-Served-By"]
    assert statuses(browser, "/admin/") == {(app, 302) for app in APPS}


def test_a_wrong_password_is_refused(lab: Lab, site: Site) -> None:
    browser = Browser(lab, "lb1")
    answer = browser.post_form("/admin/login/", {"username": site.username, "password": site.password + "x"})
    assert answer.status_code == 200
    assert statuses(browser, "/admin/") == {(app, 302) for app in APPS}


def test_the_static_files_of_the_admin_are_served(lab: Lab, site: Site) -> None:
    assets = admin_assets(log_in(lab, "lb1", site))
    assert any(asset.startswith("/static/wagtailadmin/css/") for asset in assets), assets
    assert any(asset.startswith("/static/wagtailadmin/js/") for asset in assets), assets


def test_a_second_run_changes_nothing(lab: Lab, site: Site) -> None:
    run = lab.playbook("-e", f"@{site.variables}")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
