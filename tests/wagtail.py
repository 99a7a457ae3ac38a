# SPDX-License-Identifier: GPL-3.0-or-later
"""A project that nobody prepared: the site `wagtail start` generates, put on a lab by inventory variables alone."""

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

from tests.cluster import ROOT, Browser, Lab, Recap

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
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, environment],
        [uv, "pip", "install", "--quiet", "--python", environment / "bin/python", *GENERATOR],
        [environment / "bin/wagtail", "start", "mysite", project],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work, timeout=300)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return project


def put_on(lab: Lab, node: str) -> Site:
    """Deploy it in place of the example site, with a database of its own, and make a user; node runs Django."""
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
        node,
        "from django.contrib.auth import get_user_model\n"
        f"user, _ = get_user_model().objects.get_or_create(username='{username}', is_staff=True, is_superuser=True)\n"
        f"user.set_password('{password}')\n"
        "user.save()\n",
    )
    return Site(project, variables, before, run, username, password)


def log_in(lab: Lab, balancer: str, site: Site) -> Browser:
    """A browser that logged in to Wagtail's admin."""
    browser = Browser(lab, balancer)
    browser.login(site.username, site.password, path="/admin/login/")
    return browser


def admin_assets(editor: Browser) -> list[str]:
    """The static files of the admin's first page, each of which must be served under a hashed name."""
    page = editor.get("/admin/").text
    assets = sorted(set(re.findall(r'(?:href|src)="(/static/[^"?#]+)', page)))
    # The production settings choose hashed names, so the pages and the static servers agree about them.
    assert [asset for asset in assets if not re.search(r"\.[0-9a-f]{12}\.\w+$", asset)] == []
    assert {asset: editor.get(asset).status_code for asset in assets} == dict.fromkeys(assets, 200)
    return assets
