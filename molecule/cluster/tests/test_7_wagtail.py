# SPDX-License-Identifier: GPL-3.0-or-later
"""A project that nobody prepared: the site `wagtail start` generates runs on the cluster by inventory variables alone.

The last file of the scenario, since it leaves this project on the lab in place of the example site, with a database of
its own beside the example's.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import ROOT, Browser, Lab, Recap, wait_until

APPS = ["app1", "app2", "app3"]
# The last one made for Django 5.2, and so for the Python of both Debian releases: 3.11 and 3.13.
GENERATOR = ["wagtail==7.2.3", "Django>=5.2,<5.3"]


@dataclass(frozen=True)
class Site:
    """The deployed project, and somebody who may log in to its admin."""

    directory: Path
    variables: Path
    digest: str
    first_run: Recap
    username: str
    password: str


def digest(directory: Path) -> str:
    """One value for all names and contents below a directory."""
    result = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        result.update(f"{path.relative_to(directory)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return result.hexdigest()


def generate(work: Path) -> Path:
    """Let Wagtail make a new project. It puts a secret key of its own into it, so each is a release of its own."""
    uv, environment, project = ROOT / ".venv/bin/uv", work / "venv", work / "mysite"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    for command in (
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, environment],
        [uv, "pip", "install", "--quiet", "--python", environment / "bin/python", *GENERATOR],
        [environment / "bin/wagtail", "start", "mysite", project],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work, timeout=300)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return project


@pytest.fixture(scope="module")
def site(lab: Lab) -> Site:
    work = ROOT / ".build" / "wagtail" / lab.name
    project = generate(work)
    before = digest(project)
    variables = work / "variables.json"
    variables.write_text(
        json.dumps(
            {
                "django_project": str(project),
                "django_settings_module": "mysite.settings.production",
                "cluster_database_name": "wagtail",
            }
        ),
        encoding="utf-8",
    )
    run = lab.playbook("-e", f"@{variables}")
    assert run.returncode == 0, run.output[-8000:]
    username, password = "editor", secrets.token_urlsafe(24)
    lab.manage(
        "app1",
        "from django.contrib.auth import get_user_model\n"
        f"user, _ = get_user_model().objects.get_or_create(username='{username}', is_staff=True, is_superuser=True)\n"
        f"user.set_password('{password}')\n"
        "user.save()\n",
    )
    return Site(project, variables, before, run, username, password)


@pytest.fixture
def editor(lab: Lab, site: Site) -> Browser:
    """A browser that logged in to Wagtail's admin."""
    browser = Browser(lab, "lb1")
    browser.login(site.username, site.password, path="/admin/login/")
    return browser


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


def test_the_static_files_of_the_admin_are_served(lab: Lab, editor: Browser) -> None:
    page = editor.get("/admin/").text
    assets = sorted(set(re.findall(r'(?:href|src)="(/static/[^"?#]+)', page)))
    assert any(asset.startswith("/static/wagtailadmin/css/") for asset in assets), assets
    assert any(asset.startswith("/static/wagtailadmin/js/") for asset in assets), assets
    # The production settings choose hashed names, so the pages and the static servers agree about them.
    assert [asset for asset in assets if not re.search(r"\.[0-9a-f]{12}\.\w+$", asset)] == []
    assert {asset: editor.get(asset).status_code for asset in assets} == dict.fromkeys(assets, 200)


def test_a_second_run_changes_nothing(lab: Lab, site: Site) -> None:
    run = lab.playbook("-e", f"@{site.variables}")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
