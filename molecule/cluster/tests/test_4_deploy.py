# SPDX-License-Identifier: GPL-3.0-or-later
"""Deploys and rollbacks under load: they lose no request, whether they succeed, fail or are killed."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import ROOT, Browser, Lab, wait_until
from tests.load.load import Running, percentile, running

APPS = ["app1", "app2", "app3"]
MIX = {"plain": 6, "page": 3, "session": 3, "post": 2, "static": 2, "slow": 1}
# Enough that a node always has some of each kind in flight; test_twenty_thousand_requests is for the number of them.
RATE, SLOW_SECONDS = 25, 2
DEPLOY, ROLLBACK = "playbooks/deploy.yml", "playbooks/rollback.yml"
LOCK = "/var/lib/flotilla/deploy.json"


@pytest.fixture(scope="module", autouse=True)
def inventory_release(lab: Lab) -> Iterator[None]:
    """Afterwards the nodes run what the inventory says again: the tests that follow count changes."""
    yield
    run = lab.playbook("--tags", "postgresql,redis,django,nginx_static")
    assert run.returncode == 0, run.output[-3000:]


def releases(lab: Lab) -> set[str]:
    """What the processes of the nodes say they run, not what links say."""
    return {
        Path(lab.ssh(app, "readlink /proc/$(systemctl show -P MainPID django)/cwd").strip()).parts[4] for app in APPS
    }


def nothing_failed(load: Running) -> bool:
    """The load's verdict, with what a reader needs when it is bad."""
    report = load.report
    shown = [(one["due"], one["kind"], one["reason"], one["detail"]) for one in report["failures"][:5]]
    assert report["failed"] == 0, f"{report['failed']} of {report['sent']} failed: {report['reasons']}; {shown}"
    return True


def changed_example(target: Path, path: str, more: str) -> Path:
    """A copy of the example with more at the end of one file."""
    project = target / "lighthouse"
    if not project.exists():
        shutil.copytree(ROOT / "examples/lighthouse", project, ignore=shutil.ignore_patterns("__pycache__"))
    with (project / path).open("a") as file:
        file.write(more)
    return project


def broken_release(target: Path) -> Path:
    """The example, but on app2 its workers don't come up. What runs at the staging sees nothing of it."""
    return changed_example(
        target, "lighthouse/urls.py",
        "\nimport socket, sys\n"
        "if socket.gethostname() == 'app2' and 'gunicorn' in sys.argv[0]:\n"
        "    raise RuntimeError('the lamp is broken')\n",
    )  # fmt: skip


def migration(operation: str) -> str:
    return (
        "from django.db import migrations, models\n\n\n"
        "def fail(apps, schema_editor):\n"
        "    raise RuntimeError('the oil has run out')\n\n\n"
        "class Migration(migrations.Migration):\n"
        '    dependencies = [("guestbook", "0002_lights")]\n'
        f"    operations = [{operation}]\n"
    )


NULLABLE = 'migrations.AddField("Entry", "colour", models.CharField(max_length=5, null=True))'


def test_deploy_and_rollback_lose_no_request(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    # One that changes nothing: the tests after this one know the tables as they are.
    project = changed_example(tmp_path, "guestbook/migrations/0003_nothing.py", migration(""))
    wanted = ("-e", f"django_project={project}", "-e", "django_version=next")
    with running(lab.load(user, rate=RATE, seconds=400, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        there = lab.playbook(*wanted, playbook=DEPLOY)
        after = releases(lab)
        again = lab.playbook(*wanted, playbook=DEPLOY)
        back = lab.playbook(playbook=ROLLBACK)
    assert there.returncode == 0, there.output[-3000:]
    assert back.returncode == 0, back.output[-3000:]
    assert {name.rsplit("-", 1)[0] for name in after} == {"next"}
    assert lab.sql("db1", "SELECT count(*) FROM django_migrations WHERE name = '0003_nothing'", "django") == "1"
    # Django is not started once more only to find that there is nothing to migrate.
    assert ["Apply the migrations" in run.output for run in (there, again)] == [True, False]
    assert not again.changed, again.changed_tasks
    assert releases(lab) == before
    assert nothing_failed(load)
    for app in APPS:
        assert "switched" in next(line for line in there.output.splitlines() if f"- {app} " in line)
    line = json.loads(lab.ssh("app2", "tail -n1 /var/log/flotilla-deploy.log"))
    assert (line["kind"], line["outcome"]) == ("rollback", "ok"), line
    assert {line["to"]} == before
    assert lab.ssh("app2", "stat -c '%a %U %G' /var/log/flotilla-deploy.log").strip() == "640 root adm"
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


def test_a_release_that_fails_on_the_second_node_is_taken_back(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    project = broken_release(tmp_path)
    with running(lab.load(user, rate=RATE, seconds=300, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        run = lab.playbook(
            "-e", f"django_project={project}", "-e", "django_version=broken", "-e", "django_start_timeout=15",
            playbook=DEPLOY,
        )  # fmt: skip
    assert run.returncode != 0
    assert "the lamp is broken" in run.output[-4000:], run.output[-4000:]
    assert releases(lab) == before
    assert nothing_failed(load)
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


@pytest.mark.parametrize(
    ("path", "more", "reason"),
    [
        pytest.param("guestbook/models.py", "\nraise RuntimeError('no lamp at all')\n", "no lamp at all", id="import"),
        pytest.param(
            "guestbook/migrations/0099_oil.py",
            migration("migrations.RunPython(fail, migrations.RunPython.noop)"),
            "the oil has run out",
            id="migration",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "guestbook/migrations/0099_colour.py",
            migration('migrations.AddField("Entry", "colour", models.CharField(max_length=5, default="x"))'),
            "Add field colour to Entry",
            id="gate",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "lighthouse/urls.py",
            "\nimport sys\n\n\ndef broken(request):\n    raise RuntimeError('no way up')\n\n\n"
            "if 'gunicorn' in sys.argv[0]:\n    urlpatterns.insert(0, path('', broken))\n",
            "GET /: HTTP 500",
            id="first page",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_release_that_cannot_run_leaves_the_old_one_serving(
    lab: Lab, user: str, tmp_path: Path, path: str, more: str, reason: str, request: pytest.FixtureRequest
) -> None:
    before = releases(lab)
    project = changed_example(tmp_path, path, more)
    version = "bad-" + request.node.callspec.id.replace(" ", "-")
    with running(lab.load(user, rate=RATE, seconds=300, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        run = lab.playbook("-e", f"django_project={project}", "-e", f"django_version={version}", playbook=DEPLOY)
    assert run.returncode != 0
    assert reason in run.output[-4000:], run.output[-4000:]
    assert lab.sql("db1", "SELECT count(*) FROM pg_attribute WHERE attname = 'colour'", "django") == "0"
    assert releases(lab) == before
    assert out_of_service(lab) == set()
    assert nothing_failed(load)
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


@pytest.mark.full
def test_a_migration_that_gets_no_lock_leaves_the_old_release_serving(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    project = changed_example(tmp_path, "guestbook/migrations/0099_colour.py", migration(NULLABLE))
    # Somebody's report, which runs for long and only reads.
    report = "BEGIN; SELECT count(*) FROM guestbook_entry; SELECT pg_sleep(250);"
    with subprocess.Popen(
        ["ssh", "-F", str(lab.directory / "ssh_config"), "db1", "runuser -u postgres -- psql -qX django"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as reader:  # fmt: skip
        assert reader.stdin
        reader.stdin.write(report)
        reader.stdin.close()
        try:
            with running(lab.load(user, rate=RATE, seconds=240, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
                run = lab.playbook("-e", f"django_project={project}", "-e", "django_version=locked", playbook=DEPLOY)
        finally:
            lab.sql("db1", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert run.returncode != 0
    assert "lock timeout" in run.output[-4000:], run.output[-4000:]
    assert lab.sql("db1", "SELECT count(*) FROM pg_attribute WHERE attname = 'colour'", "django") == "0"
    assert releases(lab) == before
    assert nothing_failed(load)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("Drain on every balancer", marks=pytest.mark.full),
        "Run the staged release",
        pytest.param("Back in service", marks=pytest.mark.full),
    ],
)
def test_a_killed_deploy_is_finished_by_the_next_run(lab: Lab, user: str, phase: str) -> None:
    version = f"killed{len(phase)}"
    with running(lab.load(user, rate=RATE, seconds=300, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        with lab.background("-e", f"django_version={version}", playbook=DEPLOY) as deploy:
            deploy.wait_for(phase, 2)  # the second node
            deploy.kill()
        held = json.loads(lab.ssh("app1", f"cat {LOCK}"))
        finished = lab.playbook("-e", f"django_version={version}", playbook=DEPLOY)
    assert held["nodes"] == APPS, held
    assert finished.returncode == 0, finished.output[-3000:]
    assert "was working at app1, app2, app3" in finished.output
    assert out_of_service(lab) == set()
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {version}
    assert nothing_failed(load)
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""


@pytest.mark.full
def test_a_killed_rollback_is_finished_by_the_next_run_also_with_a_site_yml_in_between(lab: Lab) -> None:
    assert lab.playbook("-e", "django_version=ahead", playbook=DEPLOY).returncode == 0
    (target,) = {lab.ssh(app, "readlink /srv/django/previous").strip().rpartition("/")[2] for app in APPS}
    with lab.background(playbook=ROLLBACK) as rollback:
        rollback.wait_for("TASK [Drain on every balancer", 2)  # the second node
        rollback.kill()
    # It must switch nodes, too: that takes the lock and gives it back.
    site = lab.playbook("-e", "deploy_take_over_lock=true", "-e", "django_threads=5", "--tags", "django")
    assert site.returncode == 0, site.output[-3000:]
    finished = lab.playbook(playbook=ROLLBACK)
    assert finished.returncode == 0, finished.output[-3000:]
    assert releases(lab) == {target}
    assert out_of_service(lab) == set()
    assert lab.ssh("app1", f"cat {LOCK} 2>/dev/null", check=False) == ""
    assert lab.playbook("--tags", "django").returncode == 0


@pytest.mark.full
def test_hooks_and_batches(lab: Lab) -> None:
    marks = "/var/cache/django/deploy"
    hooks = {
        "deploy_before_migrate": [f"touch {marks}-before"],
        "deploy_after_switch": [f"touch {marks}-switch"],
        "deploy_after_finish": [f"touch {marks}-finish"],
        "deploy_batch": 2,
    }
    for app in APPS:
        lab.ssh(app, f"rm -f {marks}-*")
    run = lab.playbook("-e", json.dumps(hooks), "-e", "django_version=hooked", playbook=DEPLOY)
    assert run.returncode == 0, run.output[-3000:]
    assert "Drain on every balancer: app2, app3" in run.output
    made = {app: lab.ssh(app, f"ls {marks}-* | sed 's/.*-//'").split() for app in APPS}
    assert made == {"app1": ["before", "finish", "switch"], "app2": ["switch"], "app3": ["switch"]}
    failing = {"deploy_before_migrate": ["false"]}
    failed = lab.playbook("-e", json.dumps(failing), "-e", "django_version=hooked2", playbook=DEPLOY)
    assert failed.returncode != 0
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {"hooked"}


@pytest.mark.full
def test_a_failure_can_stop_the_deploy_where_it_is(lab: Lab, user: str, tmp_path: Path) -> None:
    before = releases(lab)
    project = broken_release(tmp_path)
    arguments = ["-e", f"django_project={project}", "-e", "django_version=half", "-e", "django_start_timeout=15"]
    with running(lab.load(user, rate=RATE, seconds=400, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        run = lab.playbook(*arguments, "-e", "deploy_on_failure=stop", playbook=DEPLOY)
        between = releases(lab)
        back = lab.playbook(playbook=ROLLBACK)
    assert run.returncode != 0
    assert {name.rsplit("-", 1)[0] for name in between - before} == {"half"}
    assert between & before == before
    assert back.returncode == 0, back.output[-3000:]
    assert releases(lab) == before
    assert out_of_service(lab) == set()
    assert nothing_failed(load)


@pytest.mark.full
def test_a_slow_request_is_waited_for_and_shown_and_haproxy_may_be_reloaded(lab: Lab, user: str) -> None:
    """The first node drains for as long as its slow request takes; meanwhile somebody reloads a balancer."""
    mix = {"plain": 6, "session": 2, "post": 1, "slow": 0.4}
    with (
        running(
            lab.load(user, rate=15, seconds=300, mix=mix, slow_seconds=9, address=lab.address("lb1"), deadline=30)
        ) as load,
        lab.background("-e", "django_version=reloaded", playbook=DEPLOY) as deploy,
    ):
        deploy.wait_for("Drain on every balancer: app1")
        lab.ssh("lb1", "systemctl reload haproxy")
    assert deploy.returncode == 0, deploy.output[-3000:]
    assert "sessions left after 5 s of at most 60 s" in deploy.output
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {"reloaded"}
    assert out_of_service(lab) == set()
    assert nothing_failed(load)


@pytest.mark.full
def test_a_balancer_that_is_down_stops_a_deploy_before_it_begins(lab: Lab, user: str) -> None:
    before = releases(lab)
    version = ("-e", "django_version=onelegged")
    lab.tool("stop", "lb2")
    try:
        with running(
            lab.load(user, rate=20, seconds=400, mix=MIX, slow_seconds=SLOW_SECONDS, address=lab.address("lb1"))
        ) as load:
            unreachable = lab.playbook(*version, playbook=DEPLOY)
            left_out = lab.playbook(*version, "--limit", "all:!lb2", playbook=DEPLOY)
            untouched = releases(lab)
            asked = lab.playbook(
                *version, "--limit", "all:!lb2", "-e", "deploy_without_balancers=true", playbook=DEPLOY
            )
    finally:
        lab.tool("start", "lb2")
    assert unreachable.returncode != 0
    assert left_out.returncode != 0
    assert "--limit leaves out lb2" in left_out.output
    assert untouched == before
    assert asked.returncode == 0, asked.output[-3000:]
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {"onelegged"}
    assert nothing_failed(load)


@pytest.mark.full
@pytest.mark.parametrize("what", ["haproxy on lb2", "app2"])
def test_what_dies_in_the_middle_of_a_deploy_is_finished_by_the_next(lab: Lab, user: str, what: str) -> None:
    """The load goes through lb1. Of a node that loses its power while it is drained nobody misses anything."""
    version = f"died-{what[0]}"
    with running(
        lab.load(user, rate=RATE, seconds=500, mix=MIX, slow_seconds=SLOW_SECONDS, address=lab.address("lb1"))
    ) as load:
        with lab.background("-e", f"django_version={version}", playbook=DEPLOY) as deploy:
            deploy.wait_for("Run the staged release", 2)
            if what == "app2":
                lab.tool("kill", "app2")
            else:
                lab.ssh("lb2", "systemctl stop haproxy")
        if what == "app2":
            lab.tool("start", "app2")
            wait_until(lambda: lab.ssh("app2", "true; echo up", check=False).strip() == "up", 60, "app2 is back")
        else:
            lab.ssh("lb2", "systemctl start haproxy")
        again = lab.playbook("-e", f"django_version={version}", playbook=DEPLOY)
    assert deploy.returncode != 0
    assert again.returncode == 0, again.output[-3000:]
    assert {name.rsplit("-", 1)[0] for name in releases(lab)} == {version}
    wait_until(lambda: out_of_service(lab) == set(), 30, "all nodes are in service")
    assert nothing_failed(load)


SECRET_NAMES = {
    "cluster_database_password": "CLUSTER_DATABASE_PASSWORD",
    "cluster_redis_password": "CLUSTER_REDIS_PASSWORD",
    "django_secret_key": "CLUSTER_SECRET_KEY",
}
SECRETS_BETWEEN_SERVERS = (
    "postgresql_replication_password",
    "redis_admin_password",
    "redis_replication_password",
    "redis_sentinel_password",
)


@pytest.fixture(scope="module")
def vault() -> dict[str, str | list[str]]:
    """What the tests have changed so far and leave so: a key that is taken back is a change, too."""
    return {}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(tuple(SECRET_NAMES), id="all at once"),
        *(pytest.param((name,), id=name, marks=pytest.mark.full) for name in (*SECRET_NAMES, *SECRETS_BETWEEN_SERVERS)),
    ],
)
def test_site_yml_changes_secrets_without_a_failed_request_or_a_logout(
    lab: Lab, user: str, tmp_path: Path, vault: dict[str, str | list[str]], names: tuple[str, ...]
) -> None:
    changed = {name: secrets.token_urlsafe(32) for name in names}
    vault.update(changed)
    if "django_secret_key" in names:
        vault["django_secret_key_fallbacks"] = [environment_of(lab, "app1")["CLUSTER_SECRET_KEY"]]
    (tmp_path / "vault.json").write_text(json.dumps(vault))
    setting = ("-e", f"@{tmp_path}/vault.json", "--tags", "postgresql,redis,django")
    with running(lab.load(user, rate=RATE, seconds=400, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
        run = lab.playbook(*setting)
    again = lab.playbook(*setting)
    assert run.returncode == 0, run.output[-3000:]
    for app in APPS:
        runs_with = environment_of(lab, app)
        for name, variable in SECRET_NAMES.items():
            assert name not in changed or runs_with[variable] == changed[name]
    for secret in changed.values():
        assert secret not in run.output
    assert not again.changed, again.changed_tasks
    assert out_of_service(lab) == set()
    assert nothing_failed(load)


def environment_of(lab: Lab, app: str) -> dict[str, str]:
    """What the processes of a node were started with."""
    text = lab.ssh(app, "tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID django)/environ")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def counters(lab: Lab) -> dict[str, int]:
    """What HAProxy itself counted: errors, and requests that it sent again without a word to the client."""
    found: dict[str, int] = {}
    for balancer in ["lb1", "lb2"]:
        header, *lines = runtime(lab, balancer, "show stat").strip().splitlines()
        names = header.lstrip("# ").split(",")
        for line in lines:
            row = dict(zip(names, line.split(","), strict=False))
            if row.get("svname") == "BACKEND" and row["pxname"] in ("django", "nginx_static"):
                for name in ("hrsp_5xx", "econ", "eresp", "wretr", "wredis"):
                    found[name] = found.get(name, 0) + int(row[name] or 0)
    return found


@pytest.mark.full
def test_twenty_thousand_requests(lab: Lab, user: str, record_property: Callable[[str, object], None]) -> None:
    """Deploys and rollbacks without a pause until 20,000 requests were sent during them."""
    mix = {"plain": 12, "page": 3, "session": 4, "post": 2, "static": 4, "slow": 0.2}
    wanted, rate, quiet = 20_000, 60.0, 60
    before = counters(lab)
    moves = 0
    with running(lab.load(user, rate=rate, seconds=1800, mix=mix, slow_seconds=6, deadline=20)) as load:
        time.sleep(quiet)
        began = time.monotonic()
        while (time.monotonic() - began) * rate < wanted:
            version = ("-e", f"django_version=many{moves}")
            deploys = moves % 2 == 0
            run = lab.playbook(*(version if deploys else ()), playbook=DEPLOY if deploys else ROLLBACK, elsewhere=True)
            assert run.returncode == 0, run.output[-3000:]
            moves += 1
    counted = {name: value - before[name] for name, value in counters(lab).items()}
    fast = [one for one in load.outcomes if one.kind != "slow"]
    calm = percentile(sorted(one.milliseconds for one in fast if one.due < quiet), 0.99)
    busy = percentile(sorted(one.milliseconds for one in fast if one.due >= quiet), 0.99)
    figures = {"sent": load.report["sent"], "moves": moves, "p99_before_ms": calm, "p99_during_ms": busy, **counted}
    record_property("figures", figures)
    print(figures)
    assert nothing_failed(load)
    assert load.report["sent"] - rate * quiet >= wanted
    assert (counted["hrsp_5xx"], counted["econ"], counted["eresp"]) == (0, 0, 0), figures
    assert busy <= 2 * calm, figures


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


@pytest.mark.full
def test_a_node_that_only_one_balancer_has_back_is_put_back_on_the_other(lab: Lab) -> None:
    version = releases(lab).pop().rsplit("-", 1)[0]
    # As a kill leaves it: the right release, back on lb1, not yet on lb2, and on record.
    runtime(lab, "lb2", "set server django/app2 state maint")
    lab.ssh("app1", f"cat > {LOCK}", json.dumps({"nodes": ["app2"]}))
    assert out_of_service(lab) == {"lb2/app2"}
    failed = lab.playbook("-e", "django_version=never-built", playbook=ROLLBACK)
    assert failed.returncode != 0
    assert json.loads(lab.ssh("app1", f"cat {LOCK}"))["nodes"] == ["app2"], "a run that failed forgot the node"
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
    with running(lab.load(user, rate=RATE, seconds=200, mix=MIX, slow_seconds=SLOW_SECONDS)) as load:
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
    assert nothing_failed(load)


def test_a_node_that_is_back_can_carry_the_load_alone_two_seconds_later(lab: Lab) -> None:
    """As it must in a cluster of two nodes when the other one is next: with all of its threads."""

    def bring(state: str, *nodes: str) -> None:
        for node in nodes:
            runtime(lab, "lb1", f"set server django/{node} state {state}")

    def up(node: str) -> bool:
        rows = [line.split() for line in runtime(lab, "lb1", "show servers state django").splitlines()]
        return any(row[3] == node and row[5] != "0" for row in rows if len(row) > 6)

    def get(path: str) -> tuple[int, float]:
        began = time.monotonic()
        return Browser(lab, "lb1").get(path).status_code, time.monotonic() - began

    try:
        bring("maint", "app2")
        time.sleep(1)
        bring("ready", "app2")
        wait_until(lambda: up("app2"), 10, "app2 is up again")
        time.sleep(2)
        bring("maint", "app1", "app3")
        with ThreadPoolExecutor(6) as pool:
            slow = [pool.submit(get, "/slow/?seconds=3") for _ in range(6)]
            time.sleep(0.5)
            status, took = get("/plain/")
    finally:
        bring("ready", *APPS)
        wait_until(lambda: all(up(node) for node in APPS), 20, "all nodes are in service")
    assert (status, *(request.result()[0] for request in slow)) == (200,) * 7
    assert took < 1, f"a fast request took {took:.1f} s beside six slow ones on eight threads"


def test_the_maintenance_page_comes_and_goes(lab: Lab) -> None:
    try:
        assert lab.playbook("-e", "maintenance=on", playbook="playbooks/maintenance.yml").returncode == 0
        answer = Browser(lab, "lb2").get("/plain/")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    finally:
        assert lab.playbook("-e", "maintenance=off", playbook="playbooks/maintenance.yml").returncode == 0
    assert Browser(lab, "lb2").get("/plain/").status_code == 200
    assert lab.playbook("-e", "maintenance=later", playbook="playbooks/maintenance.yml").returncode != 0
