# SPDX-License-Identifier: GPL-3.0-or-later
"""A project that nobody prepared runs by inventory variables alone; it takes the place of the example site.

Named so that it comes after test_single.py, which asks the example.
"""

from __future__ import annotations

import json

import pytest

from tests.cluster import Browser, Lab
from tests.wagtail import Site, admin_assets, digest, log_in, put_on

# In make test it is put on the whole cluster.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    return put_on(lab, "single1")


def test_the_deployment_leaves_the_project_as_it_is(lab: Lab, site: Site) -> None:
    assert "single1" in site.first_run.changed
    assert digest(site.directory) == site.digest
    release = json.loads(lab.ssh("single1", "cat /srv/django/current/release.json"))
    assert release["settings_module"] == "mysite.settings.production"
    assert release["django"].startswith("5.2."), release


def test_it_is_healthy_and_answers(lab: Lab, site: Site, browser: Browser) -> None:
    answer = Browser(lab, "single1", port=8000).get("/-/health/deep")
    assert answer.status_code == 200, answer.text
    assert all(check["ok"] for check in answer.json()["checks"].values()), answer.text
    page = browser.get("/")
    assert page.status_code == 200
    assert "Wagtail" in page.text


def test_its_admin_lets_in_who_knows_the_password(lab: Lab, site: Site, browser: Browser) -> None:
    wrong = browser.post_form("/admin/login/", {"username": site.username, "password": site.password + "x"})
    assert wrong.status_code == 200
    assert browser.get("/admin/").status_code == 302
    editor = log_in(lab, "single1", site)
    assert site.username in editor.get("/admin/").text
    assets = admin_assets(editor)
    assert any(asset.startswith("/static/wagtailadmin/css/") for asset in assets), assets
    assert any(asset.startswith("/static/wagtailadmin/js/") for asset in assets), assets


def test_a_second_run_changes_nothing(lab: Lab, site: Site) -> None:
    run = lab.playbook("-e", f"@{site.variables}")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
