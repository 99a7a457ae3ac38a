# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read off a project's files, by tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _django_project_plan as plan

MANAGE = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")'
PLAIN = {"manage.py": MANAGE, "shop/settings.py": "", "shop/wsgi.py": "", "requirements.txt": ""}


def describe(files: Mapping[str, str], **arguments: str) -> plan.Project:
    return plan.describe(files, files.__getitem__, **arguments)


def without(name: str, **more: str) -> dict[str, str]:
    return {**{key: value for key, value in PLAIN.items() if key != name}, **more}


@pytest.mark.parametrize(
    ("files", "arguments", "wanted"),
    [
        (PLAIN, {}, {"manage": "manage.py", "settings_module": "shop.settings", "lock_kind": "requirements"}),
        (PLAIN, {}, {"python_path": ["."], "wsgi_module": "shop.wsgi", "requires_python": "", "warnings": []}),
        # what `wagtail start` makes, with the settings chosen in the inventory
        (
            {
                "manage.py": 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings.dev")',
                "mysite/settings/__init__.py": "",
                "mysite/settings/dev.py": "",
                "mysite/settings/production.py": "",
                "mysite/wsgi.py": "",
                "requirements.txt": "",
            },
            {"settings_module": "mysite.settings.production"},
            {"settings_module": "mysite.settings.production", "wsgi_module": "mysite.wsgi"},
        ),
        # everything one directory down, the lock at the top
        (
            {
                "backend/manage.py": MANAGE,
                "backend/shop/settings.py": "",
                "uv.lock": 'requires-python = ">=3.12"',
                "pyproject.toml": "",
            },
            {},
            {
                "manage": "backend/manage.py",
                "python_path": ["backend"],
                "lock_file": "uv.lock",
                "lock_kind": "uv",
                "requires_python": ">=3.12",
                "requires_python_source": "uv.lock",
                "wsgi_module": "",
            },
        ),
        # a src layout
        (
            {"manage.py": MANAGE, "src/shop/settings/__init__.py": "", "src/shop/wsgi.py": "", "pylock.toml": ""},
            {},
            {"python_path": [".", "src"], "lock_kind": "pylock", "wsgi_module": "shop.wsgi"},
        ),
        # the preferred lock, and the stated Python
        (
            {**PLAIN, "pylock.toml": "", "pyproject.toml": '[project]\nrequires-python = ">=3.11,<3.14"\n'},
            {},
            {"lock_file": "pylock.toml", "requires_python": ">=3.11,<3.14", "requires_python_source": "pyproject.toml"},
        ),
        (
            {**PLAIN, "requirements/prod.txt": ""},
            {"lock_file": "requirements/prod.txt"},
            {"lock_file": "requirements/prod.txt", "lock_kind": "requirements"},
        ),
        ({**PLAIN, "pylock.prod.toml": ""}, {"lock_file": "pylock.prod.toml"}, {"lock_kind": "pylock"}),
        # the developers' pin is a lower bound; pyproject.toml wins over it
        ({**PLAIN, ".python-version": "3.12.4\n"}, {}, {"requires_python": ">=3.12"}),
        (
            {**PLAIN, ".python-version": "3.12", "pyproject.toml": '[project]\nrequires-python = ">=3.11"'},
            {},
            {"requires_python": ">=3.11"},
        ),
        # several manage.py and one at the root; several and one chosen
        ({**PLAIN, "docs/example/manage.py": ""}, {}, {"manage": "manage.py"}),
        (
            {"a/manage.py": MANAGE, "a/shop/settings.py": "", "b/manage.py": "", "requirements.txt": ""},
            {"manage": "a/manage.py"},
            {"manage": "a/manage.py", "python_path": ["a"], "lock_file": "requirements.txt"},
        ),
        # a manage.py without a name, and one settings module
        ({**PLAIN, "manage.py": "import shop"}, {}, {"settings_module": "shop.settings"}),
    ],
)
def test_a_project_is_described(files: dict[str, str], arguments: dict[str, str], wanted: dict[str, Any]) -> None:
    project = describe(files, **arguments)
    assert {key: getattr(project, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({}, {}, ["no manage.py", "nothing"]),
        ({"README.md": "", "web/index.html": ""}, {}, ["no manage.py", "README.md", "web/"]),
        ({"a/b/c/d/manage.py": ""}, {}, ["no manage.py"]),
        ({"a/manage.py": "", "b/manage.py": ""}, {}, ["several manage.py", "a/manage.py", "django_manage"]),
        (PLAIN, {"manage": "x/manage.py"}, ["django_manage", "x/manage.py"]),
        (without("shop/settings.py"), {}, ["shop.settings", "manage.py"]),
        (PLAIN, {"settings_module": "shop.prod"}, ["shop.prod", "django_settings_module", "shop.settings"]),
        (
            {**PLAIN, "manage.py": MANAGE + "\n" + MANAGE.replace("shop.settings", "shop.test")},
            {},
            ["several settings modules", "shop.test", "django_settings_module"],
        ),
        (
            {**PLAIN, "manage.py": "", "club/settings.py": ""},
            {},
            ["several settings modules", "club.settings", "shop.settings"],
        ),
        ({**without("shop/settings.py"), "manage.py": ""}, {}, ["no settings.py", "django_settings_module"]),
        (without("requirements.txt"), {}, ["no lock file", "uv.lock", "pylock.toml", "requirements.txt"]),
        (
            without("requirements.txt", **{"requirements/base.txt": ""}),
            {},
            ["no lock file", "django_lock_file", "requirements/base.txt"],
        ),
        (without("requirements.txt", **{"poetry.lock": ""}), {}, ["poetry.lock", "poetry export"]),
        (without("requirements.txt", **{"Pipfile.lock": ""}), {}, ["Pipfile.lock", "pipenv requirements"]),
        ({**PLAIN, "poetry.lock": ""}, {"lock_file": "poetry.lock"}, ["poetry export"]),
        (PLAIN, {"lock_file": "x.txt"}, ["django_lock_file", "x.txt"]),
        (without("requirements.txt", **{"uv.lock": ""}), {}, ["uv.lock", "pyproject.toml"]),
        ({**PLAIN, "pyproject.toml": "[project"}, {}, ["pyproject.toml", "TOML"]),
    ],
)
def test_what_is_missing_is_named(files: dict[str, str], arguments: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        describe(files, **arguments)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_a_hard_assigned_settings_module_is_a_warning() -> None:
    text = 'os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"'
    project = describe({**PLAIN, "manage.py": text})
    assert project.settings_module == "shop.settings"
    assert "setdefault" in project.warnings[0]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("manage.py", True),
        ("shop/static/app.js", True),
        ("node_modules/x/index.js", False),
        ("web/node_modules/x.js", False),
        ("shop/__pycache__/a.cpython-313.pyc", False),
        ("shop/old.pyc", False),
        (".git/config", False),
        ("lib/.git", False),
        (".github/workflow.yml", True),
        (".venv/bin/python", False),
        ("db.sqlite3", False),
        ("fixtures/start.sqlite3", True),
    ],
)
def test_what_is_packed(path: str, wanted: bool) -> None:
    assert plan.wanted(path) is wanted


def test_a_virtual_environment_of_any_name_is_left_out() -> None:
    paths = ["env/pyvenv.cfg", "env/lib/x.py", "environment.py", "shop/a.py"]
    assert plan.without_virtualenvs(paths) == ["environment.py", "shop/a.py"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://git.example.com/a.git", True),
        ("ssh://git@example.com/a.git", True),
        ("git@example.com:a/b.git", True),
        ("file:///srv/a.git", True),
        ("/srv/shop", False),
        ("../shop", False),
        ("~/shop", False),
        ("shop", False),
    ],
)
def test_git_urls(text: str, wanted: bool) -> None:
    assert plan.is_git_url(text) is wanted
