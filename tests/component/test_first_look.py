# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that ask over the shell first: what that finds on real files, and that Python is started for changes only."""

from __future__ import annotations

import getpass
import grp
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _config_files_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils import _django_release_listing as releases
from ansible_collections.flotilla.django.plugins.module_utils import _django_runtime_listing as runtime
from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import parse
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_io import MARK
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import make_plan

from conftest import LabHost

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., dict[str, Any]]
ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, Any]]:
    """One of each kind, with a name that a shell would take apart."""
    return [
        {"path": str(tmp_path / "a place"), "state": "directory", "mode": "0750", **ME},
        {"path": str(tmp_path / "a place/it's.conf"), "content": "ä=1\n", **ME},
        {"path": str(tmp_path / "a place/secret"), "secret_content": "hunter2-xyz\n", "mode": "0600", **ME},
        {"path": str(tmp_path / "a place/empty"), "content": "", **ME},
        {"path": str(tmp_path / "a place/link"), "state": "link", "target": "it's.conf"},
        {"path": str(tmp_path / "old"), "state": "absent"},
    ]


def unchanged(files: list[dict[str, Any]]) -> bool:
    entries = parse(files)
    command = listing.command(entries)
    assert "hunter2" not in command
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert len(done.stdout) < 80, "one checksum, nothing that is in a file"
    return listing.nothing_to_do(entries, done.stdout)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("x")


def replace_by_file(path: Path) -> None:
    path.unlink()
    path.write_text("")


DRIFTS: dict[str, Callable[[Path], object]] = {
    "content": lambda place: (place / "a place/it's.conf").write_text("ä=2\n"),
    "content of a secret": lambda place: (place / "a place/secret").write_text("hunter3-xyz\n"),
    "mode of a file": lambda place: (place / "a place/secret").chmod(0o644),
    "mode of a directory": lambda place: (place / "a place").chmod(0o755),
    "set-user-ID": lambda place: (place / "a place/it's.conf").chmod(0o4644),
    "owner": lambda place: os.chown(place / "a place/secret", 65534, -1),
    "group": lambda place: os.chown(place / "a place/secret", -1, 65534),
    "a missing file": lambda place: (place / "a place/empty").unlink(),
    "a link in place of a file": lambda place: replace_by_link(place / "a place/secret"),
    "a missing link": lambda place: (place / "a place/link").unlink(),
    "a link to elsewhere": lambda place: link_elsewhere(place / "a place/link"),
    "a file in place of a link": lambda place: replace_by_file(place / "a place/link"),
    "what is to be absent": lambda place: (place / "old").write_text(""),
    "a dangling link where nothing is to be": lambda place: (place / "old").symlink_to("nowhere"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_question_finds_what_the_module_would_change(
    run_module: Run, files: list[dict[str, Any]], tmp_path: Path, drift: str
) -> None:
    if drift in ("owner", "group") and os.getuid() != 0:
        pytest.skip("only root gives files away")
    assert not unchanged(files)
    run_module("config_files", {"files": files})
    assert unchanged(files)
    DRIFTS[drift](tmp_path)
    assert not unchanged(files)
    assert run_module("config_files", {"files": files})["changed"]
    assert unchanged(files)


def run_ansible(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of Ansible's programs, with the project's settings."""
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def ansible(module: str, arguments: dict[str, Any], python: str = "/bin/false", *options: str) -> dict[str, Any]:
    """The result of a module on a host whose Python is this."""
    done = run_ansible(
        *("ansible", "all", "--inventory=here,", "--connection=local"),
        *(f"--extra-vars=ansible_python_interpreter={python}", f"--module-name={module}"),
        *([f"--args={json.dumps(arguments)}"] if arguments else []),
        *options,
    )
    word, found, rest = done.stdout.partition(" => ")
    assert found, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(rest)
    return {"failed": "FAILED" in word, **result}


def test_files_that_are_as_wanted_need_no_python(run_module: Run, files: list[dict[str, Any]], tmp_path: Path) -> None:
    run_module("config_files", {"files": files})
    found = ansible("flotilla.django.config_files", {"files": files})
    assert (found["failed"], found["changed"], found["changed_paths"]) == (False, False, [])
    (tmp_path / "old").write_text("")
    assert ansible("flotilla.django.config_files", {"files": files})["failed"], "a change is the module's"
    done = ansible("flotilla.django.config_files", {"files": files}, sys.executable, "--diff")
    assert done["changed_paths"] == [str(tmp_path / "old")]


def test_what_is_on_disk_is_validated_even_when_nothing_changes(run_module: Run, files: list[dict[str, Any]]) -> None:
    run_module("config_files", {"files": files})
    name = "flotilla.django.config_files"
    assert not ansible(name, {"files": files, "validate": ["true", "test -e /"]})["failed"], "valid, and without Python"
    refused = {"files": files, "validate": ["true", "false"]}
    found = ansible(name, refused, sys.executable)
    assert found["failed"] and "validation failed" in found["msg"]
    assert not ansible(name, refused, "/bin/false", "--check")["failed"], "check mode runs no command"


def test_bad_input_is_refused_in_the_words_of_the_module() -> None:
    found = ansible("flotilla.django.config_files", {"files": [{"path": "relative", "content": ""}]}, sys.executable)
    assert found["failed"] and found["msg"] == "relative: path must be absolute"


def test_packages_that_are_there_need_no_python() -> None:
    found = ansible("flotilla.django.packages", {"name": ["coreutils", "dpkg"]})
    assert (found["failed"], found["changed"]) == (False, False)
    assert ansible("flotilla.django.packages", {"name": ["coreutils", "no-such-package"]})["failed"]
    assert ansible("flotilla.django.packages", {"name": ["coreutils", "core*"]})["failed"], "a pattern is left to apt"
    assert not ansible("flotilla.django.packages", {"name": []})["failed"]


def test_packages_that_this_run_found_are_not_asked_for_again(tmp_path: Path) -> None:
    """On a host that answers nothing, whoever asks misses everything, and finds nobody."""
    blind = {"vars": {"ansible_shell_executable": "/bin/false"}, "ignore_unreachable": True}
    play = {
        "hosts": "here",
        "gather_facts": False,
        "vars": {"ansible_connection": "local", "ansible_python_interpreter": "/bin/false"},
        "tasks": [
            {"flotilla.django.packages": {"name": ["coreutils", "dpkg"]}},
            {"flotilla.django.packages": {"name": ["dpkg"]}, **blind, "register": "same"},
            {"flotilla.django.packages": {"name": ["dpkg", "bash"]}, **blind, "register": "more"},
            {"flotilla.django.packages": {"name": ["dpkg"]}, **blind, "register": "there", "delegate_to": "other"},
            {"ansible.builtin.assert": {"that": ["same is reachable", "more is unreachable", "there is unreachable"]}},
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = run_ansible("ansible-playbook", "--inventory=here,other,", str(tmp_path / "play.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_release_of_the_distribution_is_what_setup_says() -> None:
    facts = ansible("flotilla.django.debian_facts", {})["ansible_facts"]
    said = ansible("ansible.builtin.setup", {"gather_subset": ["!all", "!min", "distribution"]}, sys.executable)
    assert len(facts) == 3
    for name, value in facts.items():
        assert said["ansible_facts"][f"ansible_{name}"] == value, name


def test_a_user_who_is_there_needs_no_python() -> None:
    name = "flotilla.django.system_user"
    assert ansible(name, {"name": "nobody", "home": "/nonexistent"})["failed"] is False
    for differs in ({"name": "nobody", "home": "/else"}, {"name": "no-such-user", "home": "/nonexistent"}):
        assert ansible(name, differs)["failed"], differs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's directory with two releases."""
    environment = tmp_path / "environments/0123456789abcdef"
    (environment / "venv/bin").mkdir(parents=True)
    (environment / "venv/bin/python").write_text("")
    (environment / "environment.json").write_text("{}")
    for name in ("v1-00000000000a", "v2-00000000000b"):
        release = tmp_path / "releases" / name
        release.mkdir(parents=True)
        (release / "venv").symlink_to("../../environments/0123456789abcdef/venv")
        (release / "release.json").write_text(json.dumps({"id": name}))
    return tmp_path


def release_found(home: Path, keep: int = 2) -> dict[str, Any] | None:
    command = releases.command(str(home), "v2-00000000000b")
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return releases.installed("v2-00000000000b", keep, done.stdout)


RELEASE_DRIFTS: dict[str, Callable[[Path], object]] = {
    "not complete": lambda place: (place / "v2-00000000000b/release.json").unlink(),
    "without its Python": lambda place: (place / "v2-00000000000b/venv/bin/python").unlink(),
    "an environment that is not complete": lambda place: next(place.glob("../environments/*/*.json")).unlink(),
    "an environment that no release has": lambda place: (place / "../environments/fedcba9876543210").mkdir(),
    "another one's description": lambda place: (place / "v2-00000000000b/release.json").write_text(
        '{"id": "v1-00000000000a"}'
    ),
    "no description": lambda place: (place / "v2-00000000000b/release.json").write_text("{"),
    "left of an interrupted run": lambda place: (place / "v3-00000000000c").mkdir(),
    "left of an interrupted download": lambda place: (place / ".tmp-v3-00000000000c.tar.gz").write_text(""),
}


@pytest.mark.parametrize("drift", RELEASE_DRIFTS)
def test_only_a_complete_release_among_complete_ones_needs_no_module(home: Path, drift: str) -> None:
    assert release_found(home) == {"id": "v2-00000000000b"}
    assert release_found(home, keep=1) is None, "one is too many"
    RELEASE_DRIFTS[drift](home / "releases")
    assert release_found(home) is None


def test_what_a_node_runs_is_seen_as_the_module_sees_it(lab_host: LabHost) -> None:
    home, unit = "/srv/t-node", "t-node.service"
    wanted: dict[str, Any] = {
        "home": home,
        "release": "v2-00000000000b",
        "units": [unit],
        "restart_on": ["/etc/t-node.conf"],
        "stray_units": "t-node-*.service",
        "health_address": "127.0.0.1",
        "health_port": 9,
    }
    lines = ["[Unit]", "StartLimitIntervalSec=0", "[Service]", f"WorkingDirectory={home}/current"]
    lines += ["ExecStart=/bin/sleep infinity", "[Install]", "WantedBy=multi-user.target"]
    for command in (
        f"cd {home}/releases; touch /etc/t-node.conf v1-00000000000a/release.json v2-00000000000b/release.json",
        f"cd {home}; ln -s releases/v1-00000000000a previous; ln -s releases/v2-00000000000b current",
        f"printf '%s\\n' {shlex.join(lines)} > /etc/systemd/system/{unit}; sleep 0.1; systemctl daemon-reload",
    ):
        lab_host.run(f"mkdir -p {home}/releases/v1-00000000000a {home}/releases/v2-00000000000b; {command}")

    def reasons() -> list[str]:
        command = runtime.command(home, [unit], wanted["restart_on"], wanted["stray_units"])
        seen = runtime.read(home, [unit], wanted["restart_on"], lab_host.run(command))
        found = list(make_plan(wanted["release"], [unit], wanted["restart_on"], seen).reasons)
        told = lab_host.module("django_runtime", wanted, check=True)
        assert found == told["reasons"]
        assert (seen.current or "", seen.previous or "") == (told["release"], told["former_previous"])
        return found

    restart = f"systemctl restart {unit}"
    assert reasons() == [f"{unit} is not enabled", f"{unit} is inactive"]
    lab_host.run(f"systemctl enable --quiet --now {unit}")
    assert reasons() == []
    for drift, repair in (
        ("touch /etc/t-node.conf", restart),
        (f"systemctl stop {unit}", f"systemctl start {unit}"),
        (f"systemctl disable --quiet {unit}", f"systemctl enable --quiet {unit}"),
        (
            f"ln -sfn releases/v1-00000000000a {home}/current; {restart}",
            f"ln -sfn releases/v2-00000000000b {home}/current; {restart}",
        ),
        (f"rm {home}/current", f"ln -sfn releases/v2-00000000000b {home}/current"),
        (f"echo >> /etc/systemd/system/{unit}", f"systemctl daemon-reload; {restart}"),
        (
            f"echo '{MARK}' > /etc/systemd/system/t-node-old.service",
            "rm /etc/systemd/system/t-node-old.service",
        ),
    ):
        lab_host.run(f"sleep 0.1; {drift}")
        assert reasons() != [], drift
        lab_host.run(f"sleep 0.1; {repair}; sleep 0.1")
        assert reasons() == [], repair
    # Somebody else's unit is nobody's business.
    lab_host.run("echo '[Service]' > /etc/systemd/system/t-node-mine.service")
    assert reasons() == []
    lab_host.run(f"systemctl disable --quiet --now {unit}; rm /etc/systemd/system/t-node*")
