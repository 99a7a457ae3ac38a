# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate that refuses migrations, on a real PostgreSQL, under every supported Django."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "roles" / "django" / "files"
UV = str(Path(sys.executable).with_name("uv"))
DEFAULTS = yaml.safe_load((ROOT / "roles" / "django" / "defaults" / "main.yml").read_text(encoding="utf-8"))
FULL = pytest.mark.full
APPLIED = """
    migrations.CreateModel("Order", [
        ("id", models.BigAutoField(primary_key=True)),
        ("note", models.CharField(max_length=50, null=True)),
        ("total", models.IntegerField()),
        ("code", models.CharField(max_length=20, db_index=True)),
    ]),
    migrations.CreateModel("Old", [("id", models.BigAutoField(primary_key=True))]),
"""


@dataclass(frozen=True)
class Case:
    """Operations of an unapplied migration of an app, and the words of the reasons; none: it passes."""

    operations: str
    reasons: tuple[str, ...] = ()
    warning: str = ""
    django: tuple[int, ...] = (0,)


ADD = 'migrations.AddField("Order", "extra", models.IntegerField({}))'
ALTER = 'migrations.AlterField("Order", "{}", models.{})'
CASES = {
    # Expand: what the running release does not know.
    "nullable": Case(ADD.format("null=True")),
    "newtable": Case(
        'migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True)),'
        ' ("order", models.ForeignKey("newtable.Order", models.CASCADE)), ("sku", models.CharField(max_length=9))]),'
        # Of the new release's own making: it may do with that what it likes.
        ' migrations.RenameField("Item", "sku", "number"), migrations.AddField("Item", "n", models.IntegerField()),'
        ' migrations.AlterUniqueTogether("Item", {("order", "number")}),'
        ' migrations.AlterUniqueTogether("Item", set()),'
        ' migrations.RemoveField("Item", "number"), migrations.RenameModel("Item", "Thing"),'
        ' migrations.DeleteModel("Thing")'
    ),
    "manytomany": Case('migrations.AddField("Order", "also", models.ManyToManyField("manytomany.Old"))'),
    "foreignkey": Case(
        'migrations.AddField("Order", "old", models.ForeignKey("foreignkey.Old", models.CASCADE, null=True))',
        warning="CREATE INDEX locks",
    ),
    "generated": Case(
        'migrations.AddField("Order", "twice", models.GeneratedField(expression=models.F("total") * 2,'
        " output_field=models.IntegerField(), db_persist=True))",
        django=(5,),
    ),
    "dbdefault": Case(ADD.format("db_default=7"), django=(5,)),
    "sqldefault": Case(
        ADD.format("default=7") + ", migrations.RunSQL('alter table sqldefault_order alter column extra set default 7',"
        " migrations.RunSQL.noop)"
    ),
    "wider": Case(ALTER.format("note", "CharField(max_length=99, null=True)")),
    "totext": Case(ALTER.format("note", "TextField(null=True)")),
    "lessstrict": Case(ALTER.format("total", "IntegerField(null=True)")),
    "stateonly": Case(
        'migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("Order", "note")])'
    ),
    "comesandgoes": Case(ADD.format("null=True") + ', migrations.RemoveField("Order", "extra")'),
    "ignored": Case('IgnoreMigration(), migrations.RemoveField("Order", "note")', warning="IgnoreMigration"),
    "index": Case(
        'migrations.AddIndex("Order", models.Index(fields=["total"], name="by_total"))', warning="CREATE INDEX locks"
    ),
    "concurrently": Case('AddIndexConcurrently("Order", models.Index(fields=["total"], name="by_total_c"))'),
    "python": Case("migrations.RunPython(touch, migrations.RunPython.noop)", warning="runs Python code"),
    "pythoninside": Case(
        "migrations.SeparateDatabaseAndState(database_operations=[migrations.RunPython(touch)])",
        warning="runs Python code",
    ),
    "update": Case("migrations.RunSQL(\"UPDATE update_order SET note = 'x' WHERE note IS NOT NULL\", '')"),
    # Contract: what would break it.
    "dropped": Case(
        'migrations.RemoveField("Order", "note")', ("dropped_order.note", "drop the column in a later one")
    ),
    "renamed": Case('migrations.RenameField("Order", "note", "remark")', ("renamed_order.note", "by its old name")),
    "notnull": Case(ADD.format("default=7"), ("notnull_order.extra", "db_default")),
    # Of two columns only one has its default: the whole migration must not pass for that.
    "oneoftwo": Case(
        'migrations.AddField("Order", "a", models.IntegerField(default=1)),'
        " migrations.RunSQL('ALTER TABLE oneoftwo_order ADD COLUMN b int DEFAULT 1 NOT NULL', migrations.RunSQL.noop)",
        ("oneoftwo_order.a",),
    ),
    "becomesnotnull": Case(
        ALTER.format("note", "CharField(max_length=50, default='')"), ("becomesnotnull_order.note", "later release")
    ),
    "notnulldefault": Case(ALTER.format("note", "CharField(max_length=50, db_default='')"), ("_order.note",), "", (5,)),
    "dropsdefault": Case(
        "migrations.RunSQL('ALTER TABLE dropsdefault_order ALTER total DROP DEFAULT', migrations.RunSQL.noop)",
        ("Keep the default",),
    ),
    "droptable": Case('migrations.DeleteModel("Old")', ("droptable_old", "drop the table in a later one")),
    "renametable": Case('migrations.RenameModel("Old", "Older")', ("renametable_old", "table by its old name")),
    "narrower": Case(ALTER.format("note", "CharField(max_length=9, null=True)"), ("narrower_order.note", "new type")),
    "othertype": Case(ALTER.format("total", "CharField(max_length=9)"), ("othertype_order.total", "new type")),
    "bigger": Case(ALTER.format("total", "BigIntegerField()"), ("rewritten",)),
    "unique": Case(ALTER.format("total", "IntegerField(unique=True)"), ("duplicates",)),
    "checked": Case(
        'migrations.AddConstraint("Order", CheckConstraint(models.Q(total__gt=0), "positive"))', ("this constraint",)
    ),
    # By hand, in small letters, the second of two statements.
    "byhand": Case(
        "migrations.RunSQL('-- a note\\nselect 1;\\nalter table byhand_order\\n  drop column note', '')",
        ("byhand_order.note",),
    ),
    "truncated": Case("migrations.RunSQL('truncate truncated_order', '')", ("emptied",)),
    "inside": Case(
        'migrations.SeparateDatabaseAndState(database_operations=[migrations.RemoveField("Order", "note")])',
        ("inside_order.note",),
    ),
    "writes": Case("Writes()", ("cannot be told beforehand", "read-only")),
}
HEAD = """
from django.db import migrations, models
from django.contrib.postgres.operations import AddIndexConcurrently
from django_migration_linter import IgnoreMigration

def CheckConstraint(condition, name):
    import django
    word = "condition" if django.VERSION >= (5, 1) else "check"
    return models.CheckConstraint(**{{word: condition, "name": name}})

def touch(apps, schema_editor):
    apps.get_model("{app}", "Order").objects.update(note="touched")
    raise SystemExit("the gate has run Python code of a migration")

class Writes(migrations.operations.base.Operation):
    def state_forwards(self, app_label, state): pass
    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("DELETE FROM {app}_order")
    def describe(self): return "An operation that goes past the schema editor"

class Migration(migrations.Migration):
    atomic = {atomic}
    initial = {initial}
    dependencies = {dependencies}
    operations = [{operations}]
"""


class Project:
    def __init__(self, directory: Path, port: int, version: tuple[int, ...]) -> None:
        self.directory, self.port = directory, port
        self.cases = {name: case for name, case in CASES.items() if version >= case.django}

    def migration(self, app: str, name: str, operations: str, after: str = "") -> None:
        folder = self.directory / app / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        for package in (folder, folder.parent):
            (package / "__init__.py").touch()
        text = HEAD.format(
            app=app,
            operations=textwrap.dedent(operations),
            dependencies=[(app, after)] if after else [],
            initial=not after,
            atomic="Concurrently(" not in operations,
        )
        (folder / f"{name}.py").write_text(text, encoding="utf-8")

    def run(self, script: str, *arguments: str, database: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        apps = sorted(path.parent.name for path in self.directory.glob("*/migrations"))
        (self.directory / "project_settings.py").write_text(
            f"INSTALLED_APPS = {apps}\nDATABASES = {{}}\nDEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'\n"
        )
        done = subprocess.run(
            [str(self.directory / ".venv/bin/python"), str(FILES / script), *arguments],
            cwd=self.directory,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "cluster_settings",
                "PYTHONPATH": f"{FILES}:{self.directory}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "CLUSTER_PROJECT_SETTINGS": "project_settings",
                "CLUSTER_SECRET_KEY": "k",
                "CLUSTER_DATABASE_HOSTS": "127.0.0.1",
                "CLUSTER_DATABASE_PORT": str(self.port),
                "CLUSTER_DATABASE_NAME": database,
                "CLUSTER_DATABASE_USER": "postgres",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def gate(self, *allow: str, database: str = "site") -> tuple[int, dict[str, Any]]:
        done = self.run("cluster_migration_gate.py", "--allow", *allow, database=database, check=False)
        assert done.stdout.strip(), done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert "error" not in result, done.stderr
        return done.returncode, result


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A PostgreSQL of this module alone."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("needs PostgreSQL's server programs on this machine (Debian package postgresql)")
    directory = Path(tempfile.mkdtemp(prefix="flotilla-gate-"))
    owner = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    if os.geteuid() == 0:
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs[-1].with_name(program)), "-D", str(directory / "data"), *arguments],
            cwd=directory,
            user=owner.pw_uid,
            group=owner.pw_gid,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )

    try:
        run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C.UTF-8")
        options = f"-p {number} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory} -c fsync=off"
        run("pg_ctl", "-w", "-o", options, "-l", str(directory / "log"), "start")
        try:
            yield number
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module", params=[pytest.param("4.2", marks=FULL), "5.2", pytest.param("6", marks=FULL)])
def project(request: pytest.FixtureRequest, port: int, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An app for each case: its first migration applied in the database `site`, its second not."""
    directory: Path = tmp_path_factory.mktemp("project")
    pythons = sorted((Path.home() / ".pyenv" / "versions").glob("3.13.*/bin/python"))
    wanted = (str(pythons[-1]) if pythons else "3.13") if request.param == "6" else sys.executable
    found = subprocess.run([UV, "python", "find", wanted], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"Django {request.param} needs Python 3.13, which this machine does not have")
    subprocess.run([UV, "venv", "-q", "--python", found.stdout.strip(), ".venv"], cwd=directory, check=True)
    # The versions that a release gets.
    extra = [one for one in DEFAULTS["django_extra_packages"] if one.startswith(("psycopg", "django-migration-linter"))]
    assert len(extra) == 2
    packages = [f"django=={request.param}.*", *extra]
    install = [UV, "pip", "install", "-q", "--python", ".venv/bin/python", *packages]
    subprocess.run(install, cwd=directory, check=True, timeout=170)
    project = Project(directory, port, tuple(int(part) for part in request.param.split(".")))
    database(project, "DROP DATABASE IF EXISTS site", "CREATE DATABASE site")
    for app in project.cases:
        project.migration(app, "0001_initial", APPLIED)
    project.run("cluster_migrate.py", database="site")
    for app, case in project.cases.items():
        project.migration(app, "0002_next", case.operations, after="0001_initial")
    return project


def database(project: Project, *statements: str, name: str = "postgres") -> list[str]:
    """Statements as the superuser; the first column of what the last one returned."""
    code = (
        "import sys, psycopg\nwith psycopg.connect(sys.argv[1], autocommit=True) as c:\n"
        "    for sql in sys.argv[2:]: r = c.execute(sql)\n"
        "    print(*(x[0] for x in r) if r.description else [], sep='\\n')"
    )
    python = str(project.directory / ".venv/bin/python")
    address = f"host=127.0.0.1 port={project.port} user=postgres dbname={name}"
    done = subprocess.run([python, "-c", code, address, *statements], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def judged(project: Project) -> tuple[int, dict[str, Any]]:
    return project.gate()


def test_each_migration_is_judged_for_what_it_does(project: Project, judged: tuple[int, dict[str, Any]]) -> None:
    status, result = judged
    refused = {one["migration"].split(".")[0]: " ".join(one["reasons"]) for one in result["refused"]}

    assert status == 1
    assert {app: text for app, text in refused.items() if not project.cases[app].reasons} == {}, "wrongly refused"
    assert {app for app, case in project.cases.items() if case.reasons} - refused.keys() == set(), "wrongly let through"
    wrong = {app: text for app, text in refused.items() if any(word not in text for word in project.cases[app].reasons)}
    assert wrong == {}
    # One thing is said once.
    assert [one for one in result["refused"] if len(one["reasons"]) != 1] == []
    assert result["allowed"] == []
    assert {name.split(".")[0] for name in result["unapplied"]} == project.cases.keys()


def test_what_cannot_be_judged_is_warned_of(project: Project, judged: tuple[int, dict[str, Any]]) -> None:
    warnings = judged[1]["warnings"]

    for app, case in project.cases.items():
        found = [text for text in warnings if text.startswith(f"{app}.0002_next: ")]
        assert [case.warning in text for text in found] == ([True] if case.warning else []), (app, found)


def test_nothing_is_written(project: Project, judged: tuple[int, dict[str, Any]]) -> None:
    applied = database(project, "SELECT name FROM django_migrations WHERE name <> '0001_initial'", name="site")
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'nullable_order' ORDER BY 1"

    assert applied == []
    assert database(project, columns, name="site") == ["code", "id", "note", "total"]


def test_named_migrations_are_let_through(project: Project, judged: tuple[int, dict[str, Any]]) -> None:
    refused = [one["migration"] for one in judged[1]["refused"]]

    status, result = project.gate(*refused[1:], "shop.0009_gone")
    assert status == 1
    assert [one["migration"] for one in result["refused"]] == refused[:1]
    assert result["allowed"] == refused[1:]
    assert any("shop.0009_gone" in text for text in result["warnings"])

    status, result = project.gate(*refused, "nullable.0002_next")
    assert (status, result["refused"], result["allowed"]) == (0, [], refused)


def test_a_database_without_any_migration_serves_nobody(project: Project) -> None:
    database(project, "DROP DATABASE IF EXISTS fresh", "CREATE DATABASE fresh")

    status, result = project.gate(database="fresh")

    assert (status, result["refused"], result["warnings"]) == (0, [], [])
    assert "dropped.0002_next" in result["unapplied"]


def test_what_is_applied_is_not_looked_at(project: Project) -> None:
    """The bad one is recorded as applied; what is left is judged on the state behind it."""
    database(project, "DROP DATABASE IF EXISTS later", "CREATE DATABASE later TEMPLATE site")
    bad = ("ALTER TABLE dropped_order DROP COLUMN note",)
    record = "INSERT INTO django_migrations (app, name, applied) VALUES ('dropped', '0002_next', now())"
    database(project, *bad, record, name="later")

    status, result = project.gate(database="later")

    assert status == 1
    assert "dropped.0002_next" not in [*result["unapplied"], *(one["migration"] for one in result["refused"])]
    assert "renamed.0002_next" in [one["migration"] for one in result["refused"]]
