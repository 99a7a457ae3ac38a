# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse migrations that would break the release that is running, before anything is migrated.

Run by `django-run` in the release that is about to be activated. While it goes out, the running release still works on
the migrated schema: what it reads and writes must stay. The SQL of each migration that is not applied yet is collected
as `sqlmigrate` does, in a session that can write nothing, and judged by django-migration-linter. Tables that do not
exist yet are nobody's business, and a database without any applied migration serves no release.
Prints one line of JSON at the end: {"unapplied": [...], "refused": [{"migration": "app.0002_x", "reasons": [...]}],
"allowed": [...], "warnings": [...]}; "allowed" are those that only their name let through. Exit status 1: refused.

usage: cluster_migration_gate.py [--allow app.0002_x ...]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

_NAME = r'(?:"[^"]+"|[A-Za-z_][\w$]*)'
_TABLE = re.compile(
    r"(?:(?:ALTER|DROP|CREATE(?: UNLOGGED)?) TABLE (?:IF (?:NOT )?EXISTS )?(?:ONLY )?"
    r"|CREATE (?:UNIQUE )?INDEX (?:CONCURRENTLY )?(?:IF NOT EXISTS )?" + _NAME + r" ON (?:ONLY )?"
    # A qualified name, or several tables at once, is not looked up: it counts as existing.
    rf"|UPDATE (?:ONLY )?)({_NAME})(?![\w$.,]| ,)"
)
_COLUMN = re.compile(rf"ALTER TABLE .*?\b(?:ADD|ALTER|DROP|RENAME) COLUMN (?:IF (?:NOT )?EXISTS )?({_NAME})")
_ADD_COLUMN = re.compile(rf"\bADD COLUMN (?:IF NOT EXISTS )?({_NAME})")
_SET_NOT_NULL = re.compile(rf"\bALTER COLUMN ({_NAME}) SET NOT NULL")
_RENAMED_TABLE = re.compile(rf"^ALTER TABLE .* RENAME TO ({_NAME})")
_NEW_TYPE = re.compile(
    rf"ALTER TABLE (?:ONLY )?{_NAME} ALTER COLUMN ({_NAME}) TYPE ([a-z ]+(?:\([\d, ]+\))?)(?: USING {_NAME}::[^,]*)?;?",
    re.IGNORECASE,
)

# What the running release would meet, and what to do instead: by the code of the finding.
REASONS = {
    "DROP_COLUMN": "the running release still names this column in its queries. Take the field out of the code alone"
    " (SeparateDatabaseAndState) in this release, and drop the column in a later one, which is then allowed by name",
    "DROP_TABLE": "the running release still reads and writes this table. Take the model out of the code alone"
    " (SeparateDatabaseAndState) in this release, and drop the table in a later one, which is then allowed by name",
    "RENAME_COLUMN": "the running release knows the column by its old name. Keep that (db_column), or add a new column"
    " beside it, fill both, and drop the old one in a later release",
    "RENAME_TABLE": "the running release knows the table by its old name. Keep that (Meta.db_table), or make a new"
    " table beside it and drop the old one in a later release",
    "NOT_NULL": "the rows that the running release writes leave this column empty and would be refused. Let it be"
    " NULL, or give a new column a default in the database (db_default), and make it NOT NULL in a later release",
    "ALTER_COLUMN": "the running release reads and writes this column as the type it has, and the table may be locked"
    " while it is rewritten. Add a column of the new type, fill both, and drop the old one in a later release",
    "ADD_UNIQUE": "rows that the running release may still write would be refused as duplicates. See to it in the code"
    " first, and add the constraint in a later release, which is then allowed by name",
    "ADD_CONSTRAINT": "rows that the running release may still write would be refused by this constraint. See to it in"
    " the code first, and add the constraint in a later release, which is then allowed by name",
    "DROP_DEFAULT": "the running release leaves it to the database to fill this column. Keep the default until a later"
    " release",
    "DROP_OTHER": "the running release may still use what is removed, renamed or emptied here. Do it in a later"
    " release, which is then allowed by name",
}
_ONLY_BY_NAME = "what it would do cannot be told beforehand"


def unquoted(name: str) -> str:
    """An SQL name as the catalogue has it."""
    return name[1:-1] if name.startswith('"') else name.lower()


def table_of(statement: str) -> str | None:
    match = _TABLE.match(statement)
    return unquoted(match[1]) if match else None


def column_of(statement: str) -> str | None:
    match = _COLUMN.match(statement)
    return unquoted(match[1]) if match else None


def _type(text: str) -> tuple[str, list[int]]:
    match = re.fullmatch(r"([a-z ]+?) *(?:\(([\d, ]+)\))?", text.strip().lower())
    if not match:
        return text, []
    name = {"character varying": "varchar", "decimal": "numeric"}.get(match[1], match[1])
    return name, [int(item) for item in (match[2] or "").split(",") if item.strip()]


def widens(old: str, new: str) -> bool:
    """Whether every value of the old type is one of the new type too, and PostgreSQL need not rewrite the table."""
    (old_name, old_size), (new_name, new_size) = _type(old), _type(new)
    if (old_name, old_size) == (new_name, new_size):
        return True
    if old_name in ("varchar", "text") and new_name in ("varchar", "text"):
        return not new_size or bool(old_size and old_name == "varchar" and old_size[0] <= new_size[0])
    if old_name == new_name == "numeric" and old_size:
        return not new_size or (
            len(old_size) == len(new_size) and old_size[0] <= new_size[0] and old_size[1:] == new_size[1:]
        )
    return False


@dataclass
class Schema:
    """What exists in the database, so what the running release may use: table -> column -> type."""

    tables: dict[str, dict[str, str]]
    added: set[tuple[str, str]] = field(default_factory=set)

    def matters(self, statement: str) -> bool:
        """Whether a statement touches anything the running release may use; remembers what it makes."""
        table = table_of(statement)
        if table is None:
            return True
        if table not in self.tables:
            return False
        renamed = _RENAMED_TABLE.match(statement)
        if renamed:
            self.tables.setdefault(unquoted(renamed[1]), self.tables[table])
        self.added |= {(table, unquoted(name)) for name in _ADD_COLUMN.findall(statement)}
        # A column of its own migrations comes and goes unseen. Whether it may be NULL is another matter.
        if re.search(r"\b(DROP|RENAME) COLUMN\b", statement) and statement.count(" COLUMN ") == 1:
            return (table, column_of(statement)) not in self.added
        new_type = _NEW_TYPE.fullmatch(statement)
        if new_type:
            return not widens(self.tables[table].get(unquoted(new_type[1]), ""), new_type[2])
        return True

    def has(self, table: str | None, column: str) -> bool:
        return table is None or (column in self.tables.get(table, {}) and (table, column) not in self.added)


def grouped(statements: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(description, statement) pairs of a migration, those on the same column together: one may undo another."""
    groups: dict[Any, tuple[str, list[str]]] = {}
    for number, (description, statement) in enumerate(statements):
        column = column_of(statement)
        key = (table_of(statement), column) if column else number
        groups.setdefault(key, (description, []))[1].append(statement)
    return list(groups.values())


def drops_default(statements: list[str]) -> bool:
    """Whether an existing column loses its default. Django sets one for a moment while it alters a column."""
    before, found, _ = " ".join(statements).partition("DROP DEFAULT")
    return bool(found) and "SET DEFAULT" not in before and "ADD COLUMN" not in before


def decide(
    unapplied: list[str], findings: dict[str, list[str]], warnings: list[str], allow: Iterable[str]
) -> dict[str, Any]:
    names = list(dict.fromkeys(allow))
    refused = [name for name in unapplied if findings.get(name)]
    return {
        "unapplied": unapplied,
        "refused": [{"migration": name, "reasons": findings[name]} for name in refused if name not in names],
        "allowed": [name for name in refused if name in names],
        "warnings": [
            *warnings,
            *(f"{name} is allowed, but is no unapplied migration" for name in names if name not in unapplied),
        ],
    }


class Judge:
    """django-migration-linter's judgement of SQL, asked only of what the running release may use."""

    def __init__(self, schema: Schema) -> None:
        from django_migration_linter.sql_analyser.analyser import analyse_sql_statements
        from django_migration_linter.sql_analyser.base import Check, CheckMode, CheckType, has_not_null_column
        from django_migration_linter.sql_analyser.postgresql import PostgresqlAnalyser

        def not_null(statements: list[str], **_: Any) -> bool:
            # A default does not help: the running release names the column and may send NULL.
            taken = (
                schema.has(table_of(one), unquoted(name)) for one in statements for name in _SET_NOT_NULL.findall(one)
            )
            return bool(has_not_null_column(statements)) or any(taken)

        def check(code: str, function: Any, mode: Any = CheckMode.ONE_LINER) -> Any:
            return Check(code=code, fn=function, message=code, mode=mode, type=CheckType.ERROR)

        def found(pattern: str) -> Any:
            return lambda sql, **_: re.search(pattern, sql)

        class Analyser(PostgresqlAnalyser):
            migration_checks: ClassVar[list[Any]] = [
                *PostgresqlAnalyser.migration_checks,
                check("NOT_NULL", not_null, CheckMode.TRANSACTION),
                check("DROP_TABLE", found(r"^DROP (FOREIGN )?TABLE")),
                check("RENAME_COLUMN", found(rf"^ALTER TABLE .* RENAME (COLUMN )?{_NAME} TO ")),
                check("ADD_CONSTRAINT", found(r"\bADD (CONSTRAINT \S+ )?(CHECK|EXCLUDE|FOREIGN KEY|PRIMARY KEY)\b")),
                check("DROP_DEFAULT", lambda sql, **_: drops_default(sql), CheckMode.TRANSACTION),
                check(
                    "DROP_OTHER",
                    found(
                        r"^TRUNCATE\b|^DROP (MATERIALIZED VIEW|VIEW|SCHEMA|SEQUENCE|TYPE|DOMAIN)\b"
                        r"|^DROP (FUNCTION|PROCEDURE|EXTENSION)\b"
                        r"|^ALTER (VIEW|MATERIALIZED VIEW|SEQUENCE|TYPE|SCHEMA|FUNCTION) .* (RENAME|SET SCHEMA)\b"
                        r"|^ALTER TABLE .* SET SCHEMA\b|^REVOKE\b"
                    ),
                ),
            ]

        self._schema = schema
        self._analyse = lambda statements: analyse_sql_statements(Analyser, statements)

    def judge(self, statements: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Reasons to refuse a migration, and warnings."""
        reasons, warnings = [], []
        for description, group in grouped([one for one in statements if self._schema.matters(one[1])]):
            errors, _, noted = self._analyse(group)
            for issue in errors:
                place = ".".join(filter(None, (table_of(group[0]), column_of(group[0]))))
                text = REASONS.get(issue.code, issue.message)
                reasons.append(f"{description}{f' ({place})' if place else ''}: {text}.")
            warnings += [f"{description}: {issue.message}" for issue in noted]
        return list(dict.fromkeys(reasons)), list(dict.fromkeys(warnings))


def split(script: str) -> list[str]:
    """The statements of a script, without comments, in one line each, key words in capitals."""
    import sqlparse

    parts = (sqlparse.format(one, keyword_case="upper", strip_comments=True) for one in sqlparse.split(script))
    return [text for text in (" ".join(part.split()) for part in parts) if text.strip("; ")]


def _collect(
    connection: Any, app_label: str, operations: Iterable[Any], state: Any
) -> Iterator[tuple[Any, list[str], str]]:
    """Each operation with its SQL, or with the reason why that cannot be told; state becomes the one behind them."""
    from django.db.migrations.operations import SeparateDatabaseAndState

    for operation in operations:
        before = state.clone()
        operation.state_forwards(app_label, state)
        if isinstance(operation, SeparateDatabaseAndState):
            yield from _collect(connection, app_label, operation.database_operations, before)
        elif not operation.reduces_to_sql:
            yield operation, [], "runs Python code, which is not judged: what the running release reads must stay right"
        else:
            try:
                with connection.schema_editor(collect_sql=True, atomic=False) as editor:
                    operation.database_forwards(app_label, editor, before, state)
            except Exception as problem:
                # Made for a table or a constraint that only an earlier migration of the plan will make, for example.
                yield operation, [], f"{_ONLY_BY_NAME} ({type(problem).__name__}: {problem})"
                continue
            yield operation, [text for sql in editor.collected_sql for text in split(str(sql))], ""


def _of_new_table(operation: Any, app_label: str, state: Any, schema: Schema) -> bool:
    """Whether an operation is on a model whose table does not exist yet."""
    name = str(getattr(operation, "model_name", None) or getattr(operation, "name", "")).lower()
    model = state.models.get((app_label, name))
    if model is None:
        return False
    return (model.options.get("db_table") or f"{app_label}_{name}") not in schema.tables


def _read_schema(connection: Any) -> Schema:
    with connection.cursor() as cursor:
        # Nothing that follows can write, whatever an operation does; and it does not wait for a busy table for ever.
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        cursor.execute("SET lock_timeout = '10s'")
        cursor.execute(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(c.oid)"
        )
        tables: dict[str, dict[str, str]] = {}
        for table, column, kind in cursor.fetchall():
            tables.setdefault(table, {})[column] = kind
    return Schema(tables)


def examine(connection: Any) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """The unapplied migrations in their order, what is against each, and warnings."""
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    plan = [item for item, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
    unapplied = [f"{item.app_label}.{item.name}" for item in plan]
    findings: dict[str, list[str]] = {}
    warnings: list[str] = []
    if not plan or not executor.loader.applied_migrations:
        return unapplied, findings, warnings
    if connection.vendor != "postgresql":
        return unapplied, findings, [f"migrations are judged for PostgreSQL only, not for {connection.vendor}"]
    from django_migration_linter import IgnoreMigration

    schema = _read_schema(connection)
    judge = Judge(schema)
    state = executor._create_project_state(with_applied_migrations=True)
    for name, migration in zip(unapplied, plan, strict=True):
        if any(isinstance(one, IgnoreMigration) for one in migration.operations):
            warnings.append(f"{name}: the project marks it with IgnoreMigration: it is not judged")
            state = migration.mutate_state(state, preserve=False)
            continue
        statements: list[tuple[str, str]] = []
        untold: list[str] = []
        for operation, collected, problem in _collect(connection, migration.app_label, migration.operations, state):
            description = operation.describe()
            statements += [(description, one) for one in collected]
            if not operation.reduces_to_sql:
                warnings.append(f"{name}: {description}: {problem}")
            elif problem and not _of_new_table(operation, migration.app_label, state, schema):
                untold.append(f"{description}: {problem}. Look at its SQL, and allow it by name.")
        reasons, noted = judge.judge(statements)
        findings[name] = reasons + untold
        warnings += [f"{name}: {text}" for text in noted]
    return unapplied, findings, warnings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allow", nargs="*", default=[], metavar="app.0002_x", help="let these migrations through")
    arguments = parser.parse_args()

    import django

    django.setup()
    from django.db import connection

    try:
        result = decide(*examine(connection), arguments.allow)
    except ModuleNotFoundError as problem:
        if not str(problem.name).startswith("django_migration_linter"):
            raise
        raise RuntimeError(
            "the release lacks django-migration-linter: put it into django_extra_packages as the role's defaults do"
        ) from problem
    finally:
        connection.close()
    print(json.dumps(result), flush=True)
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as problem:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(problem).__name__}: {problem}"}), flush=True)
        sys.exit(1)
