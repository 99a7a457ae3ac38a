# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Decide what has to happen to a list of files. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

STATES = ("file", "directory", "absent", "link")
DEFAULT_MODES = {"file": 0o644, "directory": 0o755}
# What Ansible itself shows at most of one file in a diff.
MAX_DIFF_BYTES = 104448
HIDDEN = "content differs (secret)\n"
MASK = "********"


@dataclass(frozen=True)
class Desired:
    """One entry of the module's files option."""

    path: str
    state: str = "file"
    content: bytes | None = field(default=None, repr=False)
    secret: bool = False
    target: str | None = None
    owner: str = "root"
    group: str = "root"
    mode: int | None = None
    validate: str | None = None


@dataclass(frozen=True)
class Observed:
    """What is at a path now. A link to a directory carries the attributes of that directory."""

    kind: str = "absent"  # absent, file, directory, link, other
    content: bytes | None = field(default=None, repr=False)
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    target: str | None = None
    leads_to_directory: bool = False
    parent_exists: bool = True


@dataclass(frozen=True)
class Names:
    """User and group names with their numbers, None where the host does not know the name."""

    users: Mapping[str, int | None] = field(default_factory=dict)
    groups: Mapping[str, int | None] = field(default_factory=dict)

    def user_of(self, uid: int | None) -> str:
        return _name_of(self.users, uid)

    def group_of(self, gid: int | None) -> str:
        return _name_of(self.groups, gid)


def _name_of(table: Mapping[str, int | None], number: int | None) -> str:
    for name, value in table.items():
        if value == number and value is not None and not name.isdigit():
            return name
    return str(number)


@dataclass(frozen=True)
class Action:
    """One step. verb is write, mkdir, attributes, link or remove."""

    verb: str
    desired: Desired
    uid: int | None
    gid: int | None
    diff: tuple[dict[str, str], ...] = ()

    @property
    def path(self) -> str:
        return self.desired.path


def parse(files: Iterable[Mapping[str, Any]]) -> list[Desired]:
    """The module's option as entries; ValueError names the first entry that makes no sense."""
    entries = [_parse_one(item) for item in files]
    seen: set[str] = set()
    for entry in entries:
        if entry.path in seen:
            raise ValueError(f"{entry.path}: listed twice")
        seen.add(entry.path)
    return entries


def _parse_one(item: Mapping[str, Any]) -> Desired:
    path = str(item["path"])
    if not path.startswith("/"):
        raise ValueError(f"{path}: path must be absolute")
    if path != "/":
        path = path.rstrip("/")
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path}: path must not contain '..'")
    state = item.get("state") or "file"
    if state not in STATES:
        raise ValueError(f"{path}: state must be one of {', '.join(STATES)}, got {state}")
    plain, secret = item.get("content"), item.get("secret_content")
    if plain is not None and secret is not None:
        raise ValueError(f"{path}: content and secret_content exclude each other")
    text = secret if secret is not None else plain
    if state == "file" and text is None:
        raise ValueError(f"{path}: a file needs content or secret_content")
    if state != "file" and text is not None:
        raise ValueError(f"{path}: content is only for state: file, got state: {state}")
    target = item.get("target")
    if (state == "link") != bool(target):
        raise ValueError(f"{path}: target and state: link belong together")
    validate = item.get("validate")
    if validate is not None:
        if state != "file":
            raise ValueError(f"{path}: validate is only for state: file")
        if "%s" not in validate:
            raise ValueError(f"{path}: validate must contain %s for the file to check, got {validate!r}")
    return Desired(
        path=path,
        state=state,
        content=None if text is None else text.encode("utf-8", "surrogateescape"),
        secret=secret is not None,
        target=target,
        owner=str(item.get("owner") or "root"),
        group=str(item.get("group") or "root"),
        mode=_parse_mode(path, state, item.get("mode")),
        validate=validate,
    )


def _parse_mode(path: str, state: str, mode: object) -> int | None:
    if mode is None:
        return DEFAULT_MODES.get(state)
    if state not in DEFAULT_MODES:
        raise ValueError(f"{path}: mode is only for files and directories")
    if not re.fullmatch(r"[0-7]{4}", str(mode)):
        raise ValueError(f'{path}: mode must be four octal digits in quotes, such as "0640", got {mode!r}')
    return int(str(mode), 8)


def plan(
    entries: Iterable[Desired], observed: Mapping[str, Observed], names: Names, check_mode: bool = False
) -> list[Action]:
    """The steps from what is there to what is wanted, in the order of the entries.

    In check mode an unknown owner and a missing parent directory are expected: the package that brings them
    was not installed either. Otherwise they are refused before anything is written, all of them at once.
    """
    entries = list(entries)
    problems: list[str] = []
    actions: list[Action] = []
    coming: set[str] = set()
    for entry in entries:
        now = observed[entry.path]
        uid, gid = names.users.get(entry.owner), names.groups.get(entry.group)
        if entry.state in DEFAULT_MODES and not check_mode:
            if uid is None:
                problems.append(f"{entry.path}: user {entry.owner} does not exist")
            if gid is None:
                problems.append(f"{entry.path}: group {entry.group} does not exist")
        parent = str(PurePosixPath(entry.path).parent)
        if not (entry.state == "absent" or now.parent_exists or parent in coming or check_mode):
            problems.append(f"{entry.path}: directory {parent} does not exist; list it before")
        if entry.state == "directory":
            coming.add(entry.path)
        conflict = _conflict(entry, now)
        if conflict:
            problems.append(f"{entry.path}: {conflict}")
            continue
        action = _step(entry, now, uid, gid, names)
        if action:
            actions.append(action)
    if problems:
        raise ValueError("; ".join(problems))
    return actions


def _conflict(entry: Desired, now: Observed) -> str | None:
    if now.kind == "other":
        return "is neither a file, a directory nor a link; not touched"
    if entry.state == "directory" and now.kind in ("file", "link") and not now.leads_to_directory:
        return f"a {now.kind} is in the way of the directory"
    if entry.state in ("file", "link") and now.kind == "directory":
        return f"a directory is in the way of the {entry.state}"
    return None


def _step(entry: Desired, now: Observed, uid: int | None, gid: int | None, names: Names) -> Action | None:
    if entry.state == "absent":
        if now.kind == "absent":
            return None
        return Action("remove", entry, uid, gid, (_entry_diff(entry.path, f"{now.kind}\n", "absent\n"),))
    if entry.state == "link":
        if now.kind == "link" and now.target == entry.target:
            return None
        after = f"link to {entry.target}\n"
        return Action("link", entry, uid, gid, (_entry_diff(entry.path, _describe(now), after),))
    same_attributes = now.mode == entry.mode and now.uid == uid and now.gid == gid
    attributes = _attributes_diff(entry, now, names)
    if entry.state == "directory":
        if now.kind == "absent":
            return Action("mkdir", entry, uid, gid, (_entry_diff(entry.path, "absent\n", "directory\n"), attributes))
        return None if same_attributes else Action("attributes", entry, uid, gid, (attributes,))
    if now.kind == "file" and now.content == entry.content:
        return None if same_attributes else Action("attributes", entry, uid, gid, (attributes,))
    diffs = [_content_diff(entry, now)]
    if now.kind != "file" or not same_attributes:
        diffs.append(attributes)
    return Action("write", entry, uid, gid, tuple(diffs))


def _describe(now: Observed) -> str:
    return f"link to {now.target}\n" if now.kind == "link" else f"{now.kind}\n"


def _entry_diff(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _attributes_diff(entry: Desired, now: Observed, names: Names) -> dict[str, str]:
    def show(owner: str, group: str, mode: int | None) -> str:
        return f"owner: {owner}\ngroup: {group}\nmode: {'none' if mode is None else format(mode, '04o')}\n"

    before = ""
    if now.kind in ("file", "directory") or now.leads_to_directory:
        before = show(names.user_of(now.uid), names.group_of(now.gid), now.mode)
    after = show(entry.owner, entry.group, entry.mode)
    return _entry_diff(f"{entry.path} (attributes)", before, after)


def _content_diff(entry: Desired, now: Observed) -> dict[str, str]:
    if entry.secret:
        before = "" if now.kind == "absent" else "earlier content (secret)\n"
        return _entry_diff(entry.path, before, HIDDEN)
    before = "" if now.kind == "absent" else _describe(now) if now.kind != "file" else _text(now.content)
    return _entry_diff(entry.path, before, _text(entry.content))


def _text(content: bytes | None) -> str:
    if content is None:
        return ""
    if len(content) > MAX_DIFF_BYTES:
        return f"{len(content)} bytes, too large to show\n"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(content)} bytes that are not UTF-8 text\n"
    return f"{len(content)} bytes of binary data\n" if "\0" in text else text


def scrub(text: str, entries: Iterable[Desired]) -> str:
    """The text without any word of six or more characters that occurs in a secret file.

    What a validator prints may quote the file it read, in whole, by line or by word.
    """
    words: set[str] = set()
    for entry in entries:
        if entry.secret and entry.content:
            secret = entry.content.decode("utf-8", "replace")
            words.update(secret.splitlines())
            words.update(re.split(r"[\s'\"=:,;@/<>()\[\]{}]+", secret))
            words.update(re.split(r"\s+", secret))
    for word in sorted((word.strip() for word in words), key=len, reverse=True):
        if len(word) >= 6:
            text = text.replace(word, MASK)
    return text
