# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Read and write the files of config_files: every change is one rename, and all can be put back."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import (
    Action,
    Desired,
    Names,
    Observed,
)

VALIDATE_TIMEOUT = 120


class CommandFailed(Exception):
    """A validation command ended with an error."""

    def __init__(self, what: str, command: list[str], status: int | None, output: str) -> None:
        super().__init__(what)
        self.what = what
        self.command = command
        self.status = status
        self.output = output


def observe(path: str) -> Observed:
    """What is at the path, without following a link (except to learn whether it leads to a directory)."""
    parent_exists = Path(path).parent.is_dir()
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Observed(parent_exists=parent_exists)
    kind, content, target, leads = "other", None, None, False
    if stat.S_ISREG(info.st_mode):
        kind, content = "file", Path(path).read_bytes()
    elif stat.S_ISDIR(info.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(info.st_mode):
        kind, target = "link", str(Path(path).readlink())
        leads = Path(path).is_dir()
        if leads:
            info = Path(path).stat()
    return Observed(
        kind=kind,
        content=content,
        uid=info.st_uid,
        gid=info.st_gid,
        mode=stat.S_IMODE(info.st_mode),
        target=target,
        leads_to_directory=leads,
        parent_exists=parent_exists,
    )


def look_up_names(entries: Iterable[Desired], observed: Iterable[Observed]) -> Names:
    """Numbers for every name that is wanted, and names for every number that is there."""
    users: dict[str, int | None] = {}
    groups: dict[str, int | None] = {}
    for entry in entries:
        users.setdefault(entry.owner, _user(entry.owner))
        groups.setdefault(entry.group, _group(entry.group))
    for now in observed:
        if now.uid is not None and now.uid not in users.values():
            with contextlib.suppress(KeyError):
                users.setdefault(pwd.getpwuid(now.uid).pw_name, now.uid)
        if now.gid is not None and now.gid not in groups.values():
            with contextlib.suppress(KeyError):
                groups.setdefault(grp.getgrgid(now.gid).gr_name, now.gid)
    return Names(users, groups)


def _user(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return int(name) if name.isdigit() else None


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return int(name) if name.isdigit() else None


def run(command: list[str], what: str) -> None:
    """Run a validation command without a shell; CommandFailed when it does not end with status 0."""
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=VALIDATE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(what, command, None, f"no end after {VALIDATE_TIMEOUT} seconds") from error
    except OSError as error:
        raise CommandFailed(what, command, None, f"cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise CommandFailed(what, command, done.returncode, done.stdout.decode("utf-8", "replace"))


class Transaction:
    """Applies actions; put_back() restores every path they touched."""

    def __init__(self) -> None:
        self._undo: list[tuple[str, Observed]] = []
        self._directories: set[str] = set()

    def apply(self, action: Action) -> None:
        path = action.path
        before = observe(path)
        verb = action.verb
        self._directories.add(str(Path(path).parent))
        if verb == "write":
            assert action.desired.content is not None and action.desired.mode is not None
            temporary = _write_temporary(
                path, action.desired.content, _number(action.uid), _number(action.gid), action.desired.mode
            )
            try:
                if action.desired.validate:
                    command = [part.replace("%s", temporary) for part in shlex.split(action.desired.validate)]
                    run(command, f"{path}: the new content is refused by its validation; the file is as it was")
                self._undo.append((path, before))
                Path(temporary).rename(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
        self._undo.append((path, before))
        if verb == "mkdir":
            assert action.desired.mode is not None
            Path(path).mkdir(mode=0o700)
            _set_attributes(path, _number(action.uid), _number(action.gid), action.desired.mode)
        elif verb == "attributes":
            assert action.desired.mode is not None
            _set_attributes(path, _number(action.uid), _number(action.gid), action.desired.mode)
        elif verb == "link":
            assert action.desired.target is not None
            _link(path, action.desired.target)
        elif verb == "remove":
            if before.kind == "directory":
                Path(path).rmdir()
            else:
                Path(path).unlink(missing_ok=True)
        else:
            raise ValueError(f"{path}: unknown step {verb}")

    def finish(self) -> None:
        """Make the renames survive a power cut."""
        for directory in self._directories:
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def put_back(self) -> list[str]:
        """Restore everything, newest change first; what could not be restored is returned as messages."""
        failures: list[str] = []
        for path, before in reversed(self._undo):
            try:
                _restore(path, before)
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
        self._undo.clear()
        self.finish()
        return failures


def _number(value: int | None) -> int:
    if value is None:
        raise ValueError("owner and group must be known before a file is written")
    return value


def _write_temporary(path: str, content: bytes, uid: int, gid: int, mode: int) -> str:
    """A file beside the path, complete, on disk and with its owner and mode, but under another name."""
    target = Path(path)
    # The name ends like the real one, because some validators look at the extension.
    descriptor, temporary = tempfile.mkstemp(prefix=".flotilla-", suffix=f"-{target.name}", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(stream.fileno(), uid, gid)
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def _set_attributes(path: str, uid: int, gid: int, mode: int) -> None:
    # Through a descriptor: what was looked at is what is changed, even when the name is swapped meanwhile.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _link(path: str, target: str) -> None:
    place = Path(path)
    with tempfile.TemporaryDirectory(prefix=".flotilla-", dir=place.parent) as directory:
        temporary = Path(directory) / "link"
        temporary.symlink_to(target)
        temporary.rename(place)


def _restore(path: str, before: Observed) -> None:
    place = Path(path)
    now = observe(path)
    if before.kind == "absent":
        if now.kind == "directory":
            place.rmdir()
        else:
            place.unlink(missing_ok=True)
    elif before.kind == "link" and not (before.leads_to_directory and now.kind == "link"):
        assert before.target is not None
        _link(path, before.target)
    elif before.kind == "file":
        assert before.content is not None and before.mode is not None
        uid, gid = _number(before.uid), _number(before.gid)
        if now.kind == "file" and now.content == before.content:
            _set_attributes(path, uid, gid, before.mode)
        else:
            Path(_write_temporary(path, before.content, uid, gid, before.mode)).rename(path)
    else:
        if now.kind == "absent":
            place.mkdir(mode=0o700)
        _set_attributes(path, _number(before.uid), _number(before.gid), before.mode or 0o755)
