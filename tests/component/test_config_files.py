# SPDX-License-Identifier: GPL-3.0-or-later
"""config_files on real files."""

from __future__ import annotations

import getpass
import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]
ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def snapshot(directory: Path) -> dict[str, tuple[str, str, str]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            found[str(path)] = ("link", str(path.readlink()), "")
        elif path.is_dir():
            found[str(path)] = ("directory", "", mode(path))
        else:
            found[str(path)] = ("file", path.read_text(), mode(path))
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {"path": str(tmp_path / "etc"), "state": "directory", "mode": "0750", **ME},
        {"path": str(tmp_path / "etc/a.conf"), "content": "a=1\n", **ME},
        {"path": str(tmp_path / "etc/secret"), "secret_content": "hunter2-xyz\n", "mode": "0600", **ME},
        {"path": str(tmp_path / "etc/link"), "state": "link", "target": "a.conf"},
        {"path": str(tmp_path / "old"), "state": "absent"},
    ]


def test_check_mode_tells_what_the_run_does_and_does_nothing(
    run_module: Run, files: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "old").write_text("x")
    before = snapshot(tmp_path)
    predicted = run_module("config_files", {"files": files}, check=True, diff=True)
    assert snapshot(tmp_path) == before
    done = run_module("config_files", {"files": files}, diff=True)
    assert done["changed_paths"] == predicted["changed_paths"] == [item["path"] for item in files]
    assert done["diff"] == predicted["diff"]
    assert snapshot(tmp_path) == {
        str(tmp_path / "etc"): ("directory", "", "0750"),
        str(tmp_path / "etc/a.conf"): ("file", "a=1\n", "0644"),
        str(tmp_path / "etc/link"): ("link", "a.conf", ""),
        str(tmp_path / "etc/secret"): ("file", "hunter2-xyz\n", "0600"),
    }
    again = run_module("config_files", {"files": files}, diff=True)
    assert again["changed"] is False
    assert again["changed_paths"] == []
    assert again["diff"] == []


def test_check_mode_on_a_fresh_host(run_module: Run, tmp_path: Path) -> None:
    item = {"path": str(tmp_path / "no/such/place"), "content": "x", "owner": "no-such-user", "group": "no-such-group"}
    assert run_module("config_files", {"files": [item]}, check=True)["changed_paths"] == [item["path"]]
    refused = run_module("config_files", {"files": [item]})
    assert refused["failed"]
    for word in ("no-such-user", "no-such-group", str(tmp_path / "no/such")):
        assert word in refused["msg"]


def test_unknown_owner_is_found_before_anything_is_written(
    run_module: Run, files: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = run_module("config_files", {"files": [*files, {**files[1], "path": str(tmp_path / "z"), "owner": "who"}]})
    assert "user who does not exist" in result["msg"]
    assert snapshot(tmp_path) == {}


def test_a_refused_set_is_put_back_as_it_was(run_module: Run, files: list[dict[str, Any]], tmp_path: Path) -> None:
    run_module("config_files", {"files": files})
    (tmp_path / "old").write_text("old")
    before = snapshot(tmp_path)
    wanted = [
        {**files[0], "mode": "0700"},
        {**files[1], "content": "a=2\n", "mode": "0600"},
        {**files[2], "secret_content": "other-secret\n"},
        {"path": str(tmp_path / "etc/link"), "state": "link", "target": "secret"},
        {"path": str(tmp_path / "old"), "state": "absent"},
        {"path": str(tmp_path / "etc/new"), "state": "directory", **ME},
        {"path": str(tmp_path / "etc/new/file"), "content": "new", **ME},
    ]
    # The last command shows that everything was in place when it was asked.
    command = f"sh -c 'cat {tmp_path}/etc/a.conf {tmp_path}/etc/new/file {tmp_path}/etc/link; exit 3'"
    result = run_module("config_files", {"files": wanted, "validate": ["true", command]})
    assert result["failed"]
    assert result["output"] == "a=2\nnew********\n"
    assert "all files are as they were" in result["msg"]
    assert "exit status 3" in result["msg"]
    assert "other-secret" not in result["stdout_of_module"]
    assert snapshot(tmp_path) == before


def test_a_refused_file_is_never_in_place(run_module: Run, files: list[dict[str, Any]], tmp_path: Path) -> None:
    run_module("config_files", {"files": files})
    before = snapshot(tmp_path)
    inode = (tmp_path / "etc/a.conf").stat().st_ino
    wanted = [
        {"path": str(tmp_path / "etc/first"), "content": "x", **ME},
        {**files[1], "content": "b=2\n", "validate": "grep -q ^a= %s"},
    ]
    result = run_module("config_files", {"files": wanted})
    assert "a.conf: the new content is refused" in result["msg"]
    assert snapshot(tmp_path) == before
    assert (tmp_path / "etc/a.conf").stat().st_ino == inode


def test_the_validated_file_has_its_final_owner_mode_and_extension(run_module: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    item = {"path": str(tmp_path / "a.conf"), "content": "x", "mode": "0640", **ME}
    item["validate"] = f'sh -c \'stat -c "%%a %%U %%n" "$0" > {seen}\' %s'.replace("%%", "%")
    assert not run_module("config_files", {"files": [item]})["failed"]
    rights, owner, name = seen.read_text().split()
    assert (rights, owner) == ("640", ME["owner"])
    assert Path(name).parent == tmp_path
    assert name.endswith("a.conf")
    assert not Path(name).exists()


def test_no_shell(run_module: Run, tmp_path: Path) -> None:
    item = {"path": str(tmp_path / "a"), "content": "x", "validate": f"test -f %s ; touch {tmp_path}/pwned", **ME}
    assert run_module("config_files", {"files": [item]})["failed"]
    assert snapshot(tmp_path) == {}


def test_validation_runs_when_nothing_changed(run_module: Run, files: list[dict[str, Any]], tmp_path: Path) -> None:
    """What a killed run wrote but did not check must not pass as converged."""
    run_module("config_files", {"files": files})
    result = run_module("config_files", {"files": files, "validate": [f"grep -q a=2 {tmp_path}/etc/a.conf"]})
    assert result["failed"]
    assert "this run changed no file" in result["msg"]


def test_a_link_is_replaced_and_not_written_through(run_module: Run, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "a").symlink_to("target")
    item = {"path": str(tmp_path / "a"), "content": "new", **ME}
    result = run_module("config_files", {"files": [item]}, diff=True)
    assert result["changed"]
    assert "precious" not in result["stdout_of_module"]
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "precious"


def test_a_directory_with_something_in_it_is_not_removed(
    run_module: Run, files: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_module("config_files", {"files": files})
    wanted = [{**files[1], "content": "other"}, {"path": str(tmp_path / "etc"), "state": "absent"}]
    before = snapshot(tmp_path)
    result = run_module("config_files", {"files": wanted})
    assert result["failed"]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("check", [False, True])
def test_secrets_stay_secret(run_module: Run, tmp_path: Path, check: bool) -> None:
    (tmp_path / "a").write_text("former-secret")
    item = {"path": str(tmp_path / "a"), "secret_content": "user = x\npass = latter-secret\n", "mode": "0600", **ME}
    refused = {**item, "path": str(tmp_path / "b"), "validate": "sh -c 'cat %s; exit 1'"}
    output = run_module("config_files", {"files": [item]}, check=check, diff=True)["stdout_of_module"]
    output += run_module("config_files", {"files": [refused]}, check=check, diff=True)["stdout_of_module"]
    assert "content differs (secret)" in output
    assert "latter-secret" not in output
    assert "former-secret" not in output
