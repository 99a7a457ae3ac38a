# SPDX-License-Identifier: GPL-3.0-or-later
"""The example site is a plain Django project: locked, tested, and without a word about the cluster it runs on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lighthouse"
UV = Path(sys.executable).with_name("uv")


def requirements() -> list[str]:
    text = (EXAMPLE / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_requirement_is_pinned_and_hashed() -> None:
    assert requirements()
    for line in requirements():
        assert re.match(r"[a-z0-9-]+==[0-9.]+ ", line), line
        assert "--hash=sha256:" in line, line


def test_lock_comes_from_the_project_file() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    locked = {line.split("==")[0] for line in requirements()}
    for dependency in project["dependencies"]:
        assert re.split("[<>=]", dependency)[0] in locked


def test_brings_nothing_that_the_platform_adds() -> None:
    assert not re.search("psycopg|gunicorn|redis|whitenoise", "".join(requirements()))


def test_does_not_know_the_platform() -> None:
    for path in EXAMPLE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "flotilla" not in text.lower(), path
        if path.name == "cluster.py":
            known = set(re.findall("CLUSTER_[A-Z_]+", text))
            assert known == {"CLUSTER_NODE_NAME", "CLUSTER_RELEASE_ID"}
        elif "tests" not in path.parts:
            assert "CLUSTER_" not in text, path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with its own virtual environment, made of nothing but its lock."""
    home = tmp_path_factory.mktemp("example") / "site"
    shutil.copytree(EXAMPLE, home, ignore=shutil.ignore_patterns(".venv", "__pycache__", "db.sqlite3", "staticfiles"))
    for command in (
        ["venv", "--quiet", "--python", sys.executable, ".venv"],
        ["pip", "install", "--quiet", "--python", ".venv/bin/python", "--require-hashes", "-r", "requirements.txt"],
    ):
        subprocess.run([str(UV), *command], cwd=home, check=True)
    return home


def manage(site: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "PYTHON"))}
    command = [str(site / ".venv/bin/python"), "manage.py", *arguments]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_own_tests_pass(site: Path) -> None:
    assert re.search(r"Ran [1-9][0-9]+ tests", manage(site, "test"))


def test_migrations_are_complete(site: Path) -> None:
    assert "No changes detected" in manage(site, "makemigrations", "--check", "--dry-run")


def test_production_settings_hash_the_names_of_static_files(site: Path) -> None:
    manage(site, "collectstatic", "--noinput")
    (css,) = (site / "staticfiles/css").glob("site.????????????.css")
    assert re.search(r"night\.[0-9a-f]{12}\.svg", css.read_text(encoding="utf-8"))
