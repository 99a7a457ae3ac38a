# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and packing a project, on real directories and git repositories."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _django_project_io as project


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    for name in ("manage.py", "shop/a.py", "node_modules/x.js", "__pycache__/a.pyc", "db.sqlite3", "secret.env"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "manage.py").chmod(0o755)
    (root / "link").symlink_to("shop/a.py")
    return root


def repository(tree: Path) -> Path:
    git(tree, "init", "-q", "-b", "main")
    (tree / ".gitignore").write_text("*.env\n")
    git(tree, "add", "manage.py", ".gitignore")
    git(tree, "commit", "-q", "-m", "x")
    return tree


def test_without_git_all_files_but_the_excluded_ones(tree: Path) -> None:
    assert project.list_directory(tree) == ["link", "manage.py", "secret.env", "shop/a.py"]


def test_in_a_work_tree_what_git_knows_or_would_add(tree: Path) -> None:
    repository(tree)
    (tree / "manage.py").unlink()
    assert project.list_directory(tree) == [".gitignore", "link", "shop/a.py"]


def test_a_directory_that_git_ignores_as_a_whole_is_read_all_the_same(tree: Path) -> None:
    outer = tree.parent
    git(outer, "init", "-q")
    (outer / ".gitignore").write_text("/shop/\n")
    assert "manage.py" in project.list_directory(tree)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("")])
def test_no_directory(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(project.ProjectError, match=r"x (does not exist|is not a directory)"):
        project.list_directory(tmp_path / "x")


def test_the_same_files_give_the_same_archive(tree: Path, tmp_path: Path) -> None:
    paths = project.list_directory(tree)
    project.write_archive(tree, paths, tmp_path / "1.tar.gz")
    digest = project.digest_tree(tree, paths)
    os.utime(tree / "manage.py", (1, 1))
    (tree / "shop/a.py").chmod(0o600)
    project.write_archive(tree, paths, tmp_path / "2.tar.gz")
    assert project.digest_tree(tree, paths) == digest
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.gz") as archive:
        found = {member.name: (oct(member.mode), member.uid, member.linkname) for member in archive}
    assert found == {
        "link": ("0o777", 0, "shop/a.py"),
        "manage.py": ("0o755", 0, ""),
        "secret.env": ("0o644", 0, ""),
        "shop/a.py": ("0o644", 0, ""),
    }


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_every_difference_that_matters_changes_the_digest(tree: Path, change: str) -> None:
    before = project.digest_tree(tree, project.list_directory(tree))
    if change == "content":
        (tree / "shop/a.py").write_text("other")
    elif change == "name":
        (tree / "shop/a.py").rename(tree / "shop/b.py")
    elif change == "mode":
        (tree / "manage.py").chmod(0o644)
    else:
        (tree / "link").unlink()
        (tree / "link").symlink_to("manage.py")
    assert project.digest_tree(tree, project.list_directory(tree)) != before


def test_versions_of_a_git_repository(tree: Path, tmp_path: Path) -> None:
    repository(tree)
    git(tree, "tag", "v1")
    (tree / "manage.py").write_text("second")
    git(tree, "commit", "-q", "-a", "-m", "y")
    cache = tmp_path / "cache"
    url = f"file://{tree}"
    first, commit = project.checkout(url, "v1", cache, {})
    assert project.list_directory(first) == [".gitignore", "manage.py"]
    assert (first / "manage.py").read_text() == "manage.py"
    again, _ = project.checkout(url, commit, cache, {})
    assert again == first
    for version in ("main", ""):
        latest, newest = project.checkout(url, version, cache, {})
        assert newest != commit
        assert (latest / "manage.py").read_text() == "second"
    # a branch moves, and the next run sees it
    (tree / "manage.py").write_text("third")
    git(tree, "commit", "-q", "-a", "-m", "z")
    assert (project.checkout(url, "main", cache, {})[0] / "manage.py").read_text() == "third"
    with pytest.raises(project.ProjectError, match="no branch, tag or commit 'v9'"):
        project.checkout(url, "v9", cache, {})
    with pytest.raises(project.ProjectError, match="git fetch failed"):
        project.checkout(f"file://{tree}-gone", "", cache, {})
