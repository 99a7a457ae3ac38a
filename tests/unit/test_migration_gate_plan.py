# SPDX-License-Identifier: GPL-3.0-or-later
"""What the migration gate reads out of SQL; tests/component has its judgement on a real database."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "roles" / "django" / "files" / "cluster_migration_gate.py"
    spec = importlib.util.spec_from_file_location("cluster_migration_gate", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Where its dataclasses look their annotations up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("character varying(50)", "varchar(50)", True),
        ("character varying(50)", "varchar(51)", True),
        ("character varying(50)", "varchar(49)", False),
        ("character varying(50)", "varchar", True),
        ("character varying(50)", "text", True),
        ("character varying", "varchar(50)", False),
        ("text", "varchar(50)", False),
        ("numeric(8,2)", "numeric(10, 2)", True),
        ("numeric(8,2)", "numeric(10, 3)", False),
        ("numeric(8,2)", "numeric(7, 2)", False),
        ("numeric", "numeric(7, 2)", False),
        ("integer", "bigint", False),
        ("integer", "integer", True),
        ("timestamp with time zone", "timestamp without time zone", False),
        ("", "text", False),
    ],
)
def test_wider_types(gate: ModuleType, old: str, new: str, expected: bool) -> None:
    assert gate.widens(old, new) is expected


@pytest.mark.parametrize(
    ("statement", "table", "column"),
    [
        ('ALTER TABLE "shop_order" DROP COLUMN "note" CASCADE;', "shop_order", "note"),
        ("ALTER TABLE IF EXISTS ONLY Shop_Order ADD COLUMN IF NOT EXISTS Note text;", "shop_order", "note"),
        ('ALTER TABLE "Shop" RENAME COLUMN "a" TO "b";', "Shop", "a"),
        ('ALTER TABLE "t" ADD CONSTRAINT "c" UNIQUE ("a");', "t", None),
        ('CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "i" ON "t" ("a");', "t", None),
        ("CREATE TABLE IF NOT EXISTS t (a int NOT NULL);", "t", None),
        ('DROP TABLE "t" CASCADE;', "t", None),
        # Not looked up, so it counts as a table that is in use.
        ("ALTER TABLE public.t DROP COLUMN a;", None, "a"),
        ("DROP TABLE a, b;", None, None),
        ("SELECT 1;", None, None),
    ],
)
def test_what_a_statement_touches(gate: ModuleType, statement: str, table: str | None, column: str | None) -> None:
    assert (gate.table_of(statement), gate.column_of(statement)) == (table, column)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ('DROP TABLE "new";', False),
        ('ALTER TABLE "new" ADD COLUMN "x" integer NOT NULL;', False),
        ('DROP TABLE "old";', True),
        ('ALTER TABLE "old" ALTER COLUMN "a" TYPE varchar(9);', False),
        ('ALTER TABLE "old" ALTER COLUMN "a" TYPE varchar(9) USING "a"::varchar(9);', False),
        # Wider, and something else besides.
        ('ALTER TABLE "old" ALTER COLUMN "a" TYPE varchar(9), ALTER COLUMN "a" SET NOT NULL;', True),
        ('ALTER TABLE "old" ALTER COLUMN "a" TYPE varchar(4);', True),
        ('ALTER TABLE "old" ALTER COLUMN "a" TYPE varchar(9) COLLATE "C";', True),
        ('ALTER TABLE "old" DROP COLUMN "a", DROP COLUMN "b";', True),
        ("TRUNCATE x;", True),
    ],
)
def test_what_matters_to_the_running_release(gate: ModuleType, statement: str, expected: bool) -> None:
    assert gate.Schema({"old": {"a": "character varying(5)"}}).matters(statement) is expected


def test_a_renamed_table_stays_one_that_exists(gate: ModuleType) -> None:
    schema = gate.Schema({"old": {"a": "integer"}})

    assert schema.matters('ALTER TABLE "old" RENAME TO "older";')
    assert schema.matters('ALTER TABLE "older" DROP COLUMN "a";')


def test_names_decide(gate: ModuleType) -> None:
    findings = {"shop.0002_a": ["why"], "shop.0003_b": ["why", "and why"], "shop.0004_c": []}

    assert gate.decide(list(findings), findings, ["note"], ["shop.0002_a", "shop.0002_a", "shop.0001_z"]) == {
        "unapplied": ["shop.0002_a", "shop.0003_b", "shop.0004_c"],
        "refused": [{"migration": "shop.0003_b", "reasons": ["why", "and why"]}],
        "allowed": ["shop.0002_a"],
        "warnings": ["note", "shop.0001_z is allowed, but is no unapplied migration"],
    }
