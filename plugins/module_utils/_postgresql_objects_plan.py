# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Which statements bring roles, databases and slots to what is wanted. Pure functions over what was read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_VERIFIER = re.compile(r"^SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)$")
_SIGNATURE = re.compile(r"[a-z_][a-z0-9_]*\([a-z0-9_,]*\)")
# What a service's role never has, whoever gave it.
_FORBIDDEN = {
    "superuser": "NOSUPERUSER",
    "createdb": "NOCREATEDB",
    "createrole": "NOCREATEROLE",
    "bypassrls": "NOBYPASSRLS",
}
RESERVED_ROLES = ("postgres",)


@dataclass(frozen=True)
class Step:
    """One thing to change: what to tell the operator, and the statement, which may hold a password verifier."""

    description: str
    statement: str


def quote_identifier(name: str) -> str:
    """Quote a role's or database's name."""
    if not name or "\0" in name or len(name.encode()) > 63:
        raise ValueError(f"{name!r} is no name PostgreSQL takes: it must have 1 to 63 bytes")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote a string constant whatever standard_conforming_strings says."""
    if "\\" in text:
        return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def password_matches(password: str, verifier: str | None) -> bool:
    """Tell whether a stored SCRAM verifier was made from this password; anything but SCRAM does not match."""
    match = _VERIFIER.match(verifier or "")
    if not match:
        return False
    iterations, salt, stored_key, _server_key = match.groups()
    normalised = unicodedata.normalize("NFKC", password).encode()
    salted = hashlib.pbkdf2_hmac("sha256", normalised, base64.b64decode(salt), int(iterations))
    client_key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(stored_key))


def plan_roles(
    wanted: Iterable[Mapping[str, Any]],
    current: Mapping[str, Mapping[str, Any]],
    make_verifier: Callable[[str, str], str],
) -> list[Step]:
    """Return the steps for roles. make_verifier(password, user) makes what is stored: no statement holds a password."""
    steps: list[Step] = []
    for role in wanted:
        name = role["name"]
        if name in RESERVED_ROLES or name.startswith("pg_"):
            raise ValueError(f"the role name {name!r} belongs to PostgreSQL itself: choose another")
        quoted = quote_identifier(name)
        password = role.get("password")
        found = current.get(name)
        options: list[str] = []
        told: list[str] = []
        wanted_flags = {"login": True, "replication": bool(role.get("replication"))}
        for flag, value in wanted_flags.items():
            if found is None or bool(found[flag]) != value:
                options.append(flag.upper() if value else f"NO{flag.upper()}")
        for flag, option in _FORBIDDEN.items():
            if found is not None and found[flag]:
                options.append(option)
        told += [option.lower() for option in options]
        if password and not (found and password_matches(password, found["password"])):
            options.append(f"PASSWORD {quote_literal(make_verifier(password, name))}")
            told.append("password")
        elif not password and found and found["password"]:
            options.append("PASSWORD NULL")
            told.append("no password")
        if found is None:
            steps.append(Step(f"create role {name}", f"CREATE ROLE {quoted} {' '.join(options)}".rstrip()))
        elif options:
            steps.append(Step(f"change role {name}: {', '.join(told)}", f"ALTER ROLE {quoted} {' '.join(options)}"))
        for group in role.get("member_of") or []:
            if found is None or group not in found["member_of"]:
                steps.append(Step(f"make {name} a member of {group}", f"GRANT {quote_identifier(group)} TO {quoted}"))
        for function in role.get("execute") or []:
            signature = function.replace(" ", "")
            if not _SIGNATURE.fullmatch(signature):
                raise ValueError(f"{function!r} is no function: write it like pg_ls_dir(text, boolean, boolean)")
            if found is None or signature not in found["execute"]:
                grant = f"GRANT EXECUTE ON FUNCTION pg_catalog.{signature} TO {quoted}"
                steps.append(Step(f"let {name} execute {signature}", grant))
    return steps


def plan_databases(wanted: Iterable[Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Return the steps for databases: owned by one role, closed to everybody else but those named in `connect`."""
    steps: list[Step] = []
    for database in wanted:
        name, owner = database["name"], database["owner"]
        if name in ("postgres", "template0", "template1"):
            raise ValueError(f"the database name {name!r} belongs to PostgreSQL itself: choose another")
        quoted = quote_identifier(name)
        found = current.get(name)
        if found is None:
            steps.append(Step(f"create database {name}", f"CREATE DATABASE {quoted} OWNER {quote_identifier(owner)}"))
        elif found["owner"] != owner:
            steps.append(
                Step(f"give database {name} to {owner}", f"ALTER DATABASE {quoted} OWNER TO {quote_identifier(owner)}")
            )
        if found is None or found["public"]:
            steps.append(
                Step(f"close database {name} to everybody else", f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC")
            )
        for role in database.get("connect") or []:
            if found is None or role not in found["connect"]:
                steps.append(
                    Step(
                        f"let {role} connect to database {name}",
                        f"GRANT CONNECT ON DATABASE {quoted} TO {quote_identifier(role)}",
                    )
                )
    return steps


def plan_absent_slots(gone: Sequence[str], current: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Return the steps that drop the slots of members that left."""
    used = [name for name in gone if name in current and current[name]["active"]]
    if used:
        raise ValueError(f"the slot {', '.join(used)} is in use: whoever streams from it must be stopped first")
    return [
        Step(f"drop slot {name}", f"SELECT pg_drop_replication_slot({quote_literal(name)})")
        for name in gone
        if name in current
    ]


def plan_slots(
    wanted: Sequence[str], current: Mapping[str, Mapping[str, Any]], in_recovery: bool
) -> tuple[list[Step], list[str]]:
    """Return the steps for physical slots, and warnings.

    A slot is made without reserving WAL, so it costs nothing until its standby has connected once.
    On the primary a slot that lost its WAL is made anew. On a standby nobody streams, so an idle slot that
    still holds WAL is a leftover of the time when this member was the primary, and is made anew too.
    """
    steps: list[Step] = []
    warnings: list[str] = []
    for name in wanted:
        literal = quote_literal(name)
        create = f"SELECT pg_create_physical_replication_slot({literal})"
        found = current.get(name)
        if found is None:
            steps.append(Step(f"create slot {name}", create))
            continue
        if found["type"] != "physical":
            raise ValueError(f"the slot {name} exists but is {found['type']}: drop or rename it")
        if found["active"]:
            continue
        lost = found["wal_status"] == "lost"
        leftover = in_recovery and found["restart_lsn"] is not None
        if lost or leftover:
            why = "lost its WAL" if lost else "pins WAL on a standby"
            steps.append(Step(f"make slot {name} anew: it {why}", f"SELECT pg_drop_replication_slot({literal})"))
            steps.append(Step(f"create slot {name}", create))
    for name, slot in current.items():
        if name not in wanted and not slot["active"] and not slot["temporary"] and slot["restart_lsn"] is not None:
            warnings.append(
                f"The slot {name} belongs to no member, is not in use and keeps {slot['retained_bytes']} bytes of WAL. "
                "It is not dropped, a backup may need it: if nothing does, SELECT pg_drop_replication_slot(...)."
            )
    return steps, warnings
