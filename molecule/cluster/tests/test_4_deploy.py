# SPDX-License-Identifier: GPL-3.0-or-later
"""Deploys and rollbacks under load: they lose no request, whether they succeed, fail or are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ROOT, Browser, Lab, wait_until
from tests.load.load import running

APPS = ["app1", "app2", "app3"]
MIX = {"plain": 6, "page": 3, "session": 3, "post": 2, "static": 2, "slow": 1}
DEPLOY, ROLLBACK = "playbooks/deploy.yml", "playbooks/rollback.yml"
LOCK = "/var/lib/flotilla/deploy.json"


@pytest.fixture(scope="module", autouse=True)
def inventory_release(lab: Lab) -> Iterator[None]:
    """Afterwards the nodes run what the inventory says again: the tests that follow count changes."""
    yield
    run = lab.playbook()
    assert run.returncode == 0, run.output[-3000:]


def releases(lab: Lab) -> set[str]:
    """What the processes of the nodes say they run, not what links say."""
    return {
        Path(lab.ssh(app, "readlink /proc/$(systemctl show -P MainPID django)/cwd").strip()).parts[4] for app in APPS
    }


def broken_release(target: Path) -> Path:
    """The example, but on app2 its workers don't come up. What runs at the staging sees nothing of it."""
    project = target / "lighthouse"
    shutil.copytree(ROOT / "examples/lighthouse", project, ignore=shutil.ignore_patterns("__pycache__"))
    urls = project / "lighthouse/urls.py"
    urls.write_text(
        urls.read_text() + "\nimport socket, sys\n"
        "if socket.gethostname() == 'app2' and 'gunicorn' in sys.argv[0]:\n"
        "    raise RuntimeError('the lamp is broken')\n"
    )
    return project


def test_deploy_and_rollback_lose_no_request(lab: Lab, user: str) -> None:
    before = releases(lab)
    with running(lab.load(user, rate=40, seconds=400, mix=MIX, slow_seconds=3)) as load:
        there = lab.playbook("-e", "django_version=next", playbook=DEPLOY)
        after = releases(lab)
        again = lab.playbook("-e", "django_version=next", playbook=DEPLOY)
        back = lab.playbook(playbook=ROLLBACK)
    assert there.returncode == 0, there.output[-3000:]
    assert back.returncode == 0, back.output[-3000:]
    assert {name.rsplit("-", 1)[0] for name in after} == {"next"}
    assert not again.changed, again.changed_tasks
    assert releases(lab) == before
    assert load.report["failures"] == [], load.report
    for app in APPS:
        assert "switched" in next(line for line in there.output.splitlines() if f"- {app} " in line)
    line = json.loads(lab.ssh("app2", "tail -n1 /var/log/flotilla-deploy.log"))
    assert (line["kind"], line["outcome"]) == ("rollback", "ok"), line
    assert {line["to"]} == before
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


def test_a_release_that_fails_on_the_second_node_is_taken_back(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    project = broken_release(tmp_path)
    with running(lab.load(user, rate=40, seconds=300, mix=MIX, slow_seconds=3)) as load:
        run = lab.playbook(
            "-e", f"django_project={project}", "-e", "django_version=broken", "-e", "django_start_timeout=15",
            playbook=DEPLOY,
        )  # fmt: skip
    assert run.returncode != 0
    assert "the lamp is broken" in run.output[-4000:], run.output[-4000:]
    assert releases(lab) == before
    assert load.report["failures"] == [], load.report
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


def test_a_migration_that_would_break_the_running_release_is_refused(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    project = tmp_path / "lighthouse"
    shutil.copytree(ROOT / "examples/lighthouse", project, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "guestbook/migrations/0099_colour.py").write_text(
        "from django.db import migrations, models\n\n\n"
        "class Migration(migrations.Migration):\n"
        '    dependencies = [("guestbook", "0002_lights")]\n'
        '    operations = [migrations.AddField("Entry", "colour", models.CharField(max_length=5, default="x"))]\n'
    )
    with running(lab.load(user, rate=20, seconds=200, mix=MIX, slow_seconds=3)) as load:
        run = lab.playbook("-e", f"django_project={project}", "-e", "django_version=gate", playbook=DEPLOY)
    assert run.returncode != 0
    assert "Add field colour to Entry" in run.output[-4000:], run.output[-4000:]
    assert lab.sql("db1", "SELECT count(*) FROM pg_attribute WHERE attname = 'colour'") == "0"
    assert releases(lab) == before
    assert load.report["failures"] == [], load.report


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("Drain on every balancer", marks=pytest.mark.full),
        "Run the staged release",
        pytest.param("Back in service", marks=pytest.mark.full),
    ],
)
def test_a_killed_deploy_is_finished_by_the_next_run(lab: Lab, user: str, tmp_path: Path, phase: str) -> None:
    version = f"killed{len(phase)}"
    with running(lab.load(user, rate=40, seconds=300, mix=MIX, slow_seconds=3)) as load:
        log = tmp_path / "log"
        playbook = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(lab.inventory), DEPLOY]
        command = [*playbook, "-e", f"django_version={version}"]
        with log.open("w") as output, subprocess.Popen(
            command, cwd=ROOT, env=lab.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        ) as process:  # fmt: skip
            # The second node of the deploy.
            wait_until(lambda: log.read_text().count(f"{phase}") >= 2, 120, f"the deploy comes to: {phase}", 0.02)
            os.killpg(process.pid, signal.SIGKILL)
        held = json.loads(lab.ssh("app1", f"cat {LOCK}"))
        finished = lab.playbook("-e", f"django_version={version}", playbook=DEPLOY)
    assert held["nodes"] == ["app2"], held
    assert finished.returncode == 0, finished.output[-3000:]
    assert "was working at app2" in finished.output
    assert out_of_service(lab) == set()
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {version}
    assert load.report["failures"] == [], load.report
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


def runtime(lab: Lab, balancer: str, command: str) -> str:
    """What the balancer's runtime API answers."""
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        f" s.sendall({command!r}.encode() + b'\\n'); print(s.makefile().read())"
    )
    return lab.ssh(balancer, "python3 -", program)


def out_of_service(lab: Lab) -> set[str]:
    """balancer/node for all nodes that a balancer has in another administrative state than ready."""
    found = set()
    for balancer in ["lb1", "lb2"]:
        rows = [line.split() for line in runtime(lab, balancer, "show servers state django").splitlines()]
        nodes = {row[3]: row[6] for row in rows if len(row) > 6 and row[3] in APPS}
        assert set(nodes) == set(APPS), rows
        found |= {f"{balancer}/{node}" for node, state in nodes.items() if state != "0"}
    return found


def test_a_node_that_only_one_balancer_has_back_is_put_back_on_the_other(lab: Lab) -> None:
    version = releases(lab).pop().rsplit("-", 1)[0]
    # As a kill leaves it: the right release, back on lb1, not yet on lb2, and on record.
    runtime(lab, "lb2", "set server django/app2 state maint")
    lab.ssh("app1", f"cat > {LOCK}", json.dumps({"nodes": ["app2"]}))
    assert out_of_service(lab) == {"lb2/app2"}
    failed = lab.playbook("-e", "django_version=never-built", playbook=ROLLBACK)
    assert failed.returncode != 0
    assert json.loads(lab.ssh("app1", f"cat {LOCK}")) == {"nodes": ["app2"]}, "a run that failed forgot the node"
    finished = lab.playbook("-e", f"django_version={version}", playbook=DEPLOY)
    assert finished.returncode == 0, finished.output[-3000:]
    assert out_of_service(lab) == set()
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


def test_the_second_of_two_deploys_is_refused_and_told_by_whom(lab: Lab) -> None:
    before = releases(lab)
    lock = {
        "id": "x",
        "kind": "deploy",
        "user": "anna",
        "host": "elsewhere",
        "pid": 7,
        "process_started": 1,
        "since": 0,
    }
    lab.ssh("app1", f"cat > {LOCK}", json.dumps(lock))
    try:
        refused = lab.playbook("-e", "django_version=second", playbook=DEPLOY)
        assert refused.returncode != 0
        assert "deploy x by anna on elsewhere (process 7) holds the lock since" in refused.output, refused.output[
            -2000:
        ]
        assert "Build the release" not in refused.output
        assert releases(lab) == before
        # To the release that runs: there may be no other that all nodes keep.
        here = "django_version=" + before.pop().rsplit("-", 1)[0]
        taken = lab.playbook("-e", "deploy_take_over_lock=true", "-e", here, "--check", playbook=ROLLBACK)
        assert taken.returncode == 0, taken.output[-3000:]
    finally:
        lab.ssh("app1", f"rm -f {LOCK}")


def answering(lab: Lab) -> set[str]:
    browser = Browser(lab, "lb1")
    return {browser.get("/plain/").headers["X-Served-By"] for _ in range(60)}


def test_a_host_is_drained_and_put_back_without_a_failed_request(lab: Lab, user: str) -> None:
    host = ("-e", "drain_host=app3")
    with running(lab.load(user, rate=30, seconds=200, mix=MIX, slow_seconds=3)) as load:
        out = lab.playbook(*host, playbook="playbooks/drain.yml")
        without = answering(lab)
        twice = lab.playbook(*host, playbook="playbooks/drain.yml")
        refused = lab.playbook("-e", "drain_host=app2", "-e", "drain_min_healthy=2", playbook="playbooks/drain.yml")
        deploy = lab.playbook("-e", "django_version=drained", playbook=DEPLOY)
        back = lab.playbook(*host, playbook="playbooks/undrain.yml")
    assert (out.returncode, twice.returncode, back.returncode) == (0, 0, 0), out.output[-2000:] + back.output[-2000:]
    assert without == {"app1", "app2"}
    assert not twice.changed
    assert refused.returncode != 0
    assert "min_healthy" in refused.output[-3000:], refused.output[-3000:]
    assert deploy.returncode != 0
    assert "app3 is in state maint on lb1, and not by a deploy: bring it back with undrain.yml" in deploy.output
    wait_until(lambda: answering(lab) == set(APPS), 20, "app3 gets requests again")
    assert load.report["failures"] == [], load.report


def test_the_maintenance_page_comes_and_goes(lab: Lab) -> None:
    try:
        assert lab.playbook("-e", "maintenance=on", playbook="playbooks/maintenance.yml").returncode == 0
        answer = Browser(lab, "lb2").get("/plain/")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    finally:
        assert lab.playbook("-e", "maintenance=off", playbook="playbooks/maintenance.yml").returncode == 0
    assert Browser(lab, "lb2").get("/plain/").status_code == 200
    assert lab.playbook("-e", "maintenance=later", playbook="playbooks/maintenance.yml").returncode != 0
