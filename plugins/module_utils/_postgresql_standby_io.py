# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O of a standby: what its files and its WAL say, crash recovery, and pg_rewind.

A rewind works on a renamed directory, as a clone does, because pg_rewind removes standby.signal and crash recovery must
not see one: whatever the moment at which this is killed, there is no data directory in place that would come up as a
second primary.

    main                 the data directory
    main.rewinding       the same while it is recovered and rewound
    main.rewinding.wal   the WAL it had before pg_rewind touched it, and attempt.json; with these a rewind is resumed
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_clone_io as clone_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

_SEGMENT = re.compile(r"[0-9A-F]{24}")
_COMMON = re.compile(r"rewinding from last common checkpoint at ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)")
PAGE = 8192
LONG_HEADER = 40  # of the first page of a WAL file


class DamagedError(io.PostgresqlError):
    """The data directory cannot be made a standby in place."""


def work_directory(data: Path) -> Path:
    """Where the data directory is while it is rewound."""
    return data.with_name(data.name + ".rewinding")


def _saved_directory(data: Path) -> Path:
    return data.with_name(data.name + ".rewinding.wal")


def settle(data: Path) -> None:
    """Bring what an interrupted run left to one of two states: in place, or in the middle of pg_rewind."""
    saved, work = _saved_directory(data), work_directory(data)
    part = saved.with_name(saved.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    if not work.exists():
        if saved.exists():
            shutil.rmtree(saved)
    elif not saved.exists() and io.data_state(data) == "absent":
        clone_io.make_standby(work)
        if data.exists():
            data.rmdir()
        clone_io.rename(work, data)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _attempt(data: Path) -> plan.Attempt | None:
    try:
        return plan.Attempt(**json.loads((_saved_directory(data) / "attempt.json").read_text()))
    except FileNotFoundError:
        return None


def read_local(cluster: io.Cluster) -> tuple[plan.Local, Path]:
    """Return what the files say, and the directory they are in, which is another one while it is rewound."""
    data = cluster.data_directory
    place = data
    state = io.data_state(data)
    attempt = None
    if state == "absent" and work_directory(data).exists():
        place, attempt = work_directory(data), _attempt(data)
        state = io.data_state(place)
    running = io.server_process(data) is not None
    if state != "present":
        if attempt:
            return plan.Local(problem="a rewind of it was interrupted and left it incomplete"), place
        return plan.Local(data=state, running=running), place
    located = io.Cluster(cluster.version, cluster.name, str(place), cluster.port, "")
    try:
        local = plan.read_control(io.control_data(located))
    except io.PostgresqlError as error:
        local = plan.Local(problem=str(error))
    history: plan.History | None = ()
    if local.timeline > 1:
        file = place / "pg_wal" / f"{local.timeline:08X}.history"
        history = plan.parse_history(file.read_text(encoding="utf-8")) if file.exists() else None
    label = place / "backup_label"
    local = dataclasses.replace(
        local,
        running=running,
        standby_signal=(place / "standby.signal").exists(),
        backup_label=label.exists(),
        rewound=label.exists() and "pg_rewind" in label.read_text(encoding="utf-8"),
        history=history,
        interrupted=attempt,
        boot_id=_boot_id(),
    )
    return local, place


def holds_record(cluster: io.Cluster, place: Path, local: plan.Local, lsn: int) -> bool:
    """Tell whether the WAL has a valid record at this location or behind it."""
    files = (path.name for path in (place / "pg_wal").iterdir())
    named = wal.segments(files, local.timeline, lsn, None, local.segment_size)
    if named is None:
        return False
    command = [cluster.program("pg_waldump"), "--path", str(place / "pg_wal"), "--timeline", str(local.timeline)]
    command += ["--start", wal.lsn_text(lsn), "--limit", "1", *named]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **clone_io.as_owner())
    if result.returncode == 0 or result.stdout.strip():
        return True
    if "could not find a valid record" in result.stderr or "could not find file" in result.stderr:
        return False
    raise io.PostgresqlError(f"pg_waldump ended with {result.returncode}: {result.stderr.strip()}")


def read_wal(place: Path, local: plan.Local, begin: int, end: int) -> bytes:
    """Return WAL of the data directory within one segment, from the newest timeline that has it."""
    ancestors = [timeline for timeline, _switch in reversed(local.history or ())]
    for timeline in [local.timeline, *ancestors]:
        file = place / "pg_wal" / plan.segment_name(timeline, begin, local.segment_size)
        if file.exists():
            with file.open("rb") as segment:
                segment.seek(begin % local.segment_size)
                return segment.read(end - begin)
    return b""


def compare_wal(source: clone_io.Source, place: Path, local: plan.Local) -> str:
    """Compare the end of what the directory surely has with the primary's WAL: same, different or removed."""
    end = local.position
    begin = max(end - end % local.segment_size, end - end % PAGE - PAGE)
    # A connection that has begun to stream takes no more commands.
    connection = clone_io.ReplicationConnection(source)
    try:
        theirs = connection.read_wal(local.timeline, begin, end)
    except io.PostgresqlError as error:
        if "has already been removed" in str(error):
            return "removed"
        if "ahead of the WAL flush position" in str(error) or "not in this server's history" in str(error):
            return "different"
        raise
    finally:
        connection.close()
    ours = read_wal(place, local, begin, end)
    if len(theirs) < end - begin:
        return "different"
    # Without a file of its own there is nothing to compare: it streams the whole segment anew.
    return "same" if not ours or ours == theirs else "different"


def gather(
    cluster: io.Cluster,
    source: clone_io.Source,
    place: Path,
    local: plan.Local,
    relation: plan.Relation,
) -> plan.Evidence:
    """Read in the WAL what the decision needs."""
    past, limit = False, relation.divergence
    if local.interrupted:
        return plan.Evidence()
    if limit is not None and relation.ancestor == local.timeline:
        past = holds_record(cluster, place, local, limit)
    beyond = limit is not None and (relation.ancestor != local.timeline or local.position > limit)
    if beyond or not local.position:
        return plan.Evidence(past)
    return plan.Evidence(past, compare_wal(source, place, local))


def trim(place: Path, local: plan.Local, lsn: int) -> None:
    """Clear the WAL of the directory's timeline from a location on: recovery ends there and asks the primary."""
    directory, size = place / "pg_wal", local.segment_size
    first = plan.segment_name(local.timeline, lsn, size)
    for file in sorted(directory.iterdir()):
        if _SEGMENT.fullmatch(file.name) and file.name[:8] == first[:8] and file.name > first:
            file.unlink()
    if (directory / first).exists():
        with (directory / first).open("r+b") as segment:
            segment.seek(lsn % size)
            segment.write(bytes(size - lsn % size))
            segment.flush()
            os.fsync(segment.fileno())
    io.sync(directory)


def checkpoint(
    source: clone_io.Source, timeline: int, always: bool, timeout: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until the primary's control file is on its timeline: until then pg_rewind sees the one before its promotion.

    always: a checkpoint in any case, because it writes WAL, which a standby needs to become consistent.
    """
    connection = clone_io.SourceConnection(source, dbname="postgres")
    try:
        deadline = time.monotonic() + timeout
        while True:
            (found,) = connection.command("SELECT timeline_id FROM pg_control_checkpoint()")
            if int(found or 0) == timeline and not always:
                return
            if time.monotonic() > deadline:
                raise io.PostgresqlError(f"the primary has made no checkpoint on timeline {timeline} in {timeout} s")
            connection.command("CHECKPOINT")
            always = False
            sleep(0.1)
    finally:
        connection.close()


def recover(cluster: io.Cluster, work: Path, config_file: str, timeout: int, lock: int) -> None:
    """Run crash recovery as pg_rewind would, in single-user mode, where nobody can connect.

    Not left to pg_rewind: single-user mode refuses a directory with standby.signal, and the configuration names
    another data directory than the renamed one.
    """
    for name in ("standby.signal", "recovery.signal"):
        (work / name).unlink(missing_ok=True)
    command = [cluster.program("postgres"), "--single", "-c", f"config_file={config_file}"]
    command += ["-c", f"data_directory={work}", "-c", "logging_collector=off", "-c", "lc_messages=C", "template1"]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        pass_fds=(lock,), **clone_io.as_owner(),
    )  # fmt: skip
    if result.returncode != 0:
        tail = "\n".join(result.stderr.splitlines()[-6:])
        raise DamagedError(f"crash recovery of the data directory ended with {result.returncode}:\n{tail}")


def _rewind_for_good(cluster: io.Cluster, work: Path, source: clone_io.Source, timeout: int, lock: int) -> None:
    try:
        _run_rewind(cluster, work, source, timeout, lock)
    except DamagedError as error:
        raise DamagedError(f"{error}. The next run resumes it") from error


def _run_rewind(cluster: io.Cluster, work: Path, source: clone_io.Source, timeout: int, lock: int, *more: str) -> str:
    command = [cluster.program("pg_rewind"), "--target-pgdata", str(work), "--no-ensure-shutdown"]
    command += ["--source-server", source.conninfo(dbname="postgres"), *more]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        pass_fds=(lock,), **clone_io.as_owner(),
    )  # fmt: skip
    output = (result.stdout + result.stderr).strip()
    if result.returncode != 0:
        raise DamagedError(f"pg_rewind ended with {result.returncode}: {output}")
    return output


def _require_wal(source: clone_io.Source, described: plan.Source, divergence: int) -> None:
    """See that the primary still has its WAL from the divergence on, with which the rewound server catches up."""
    after = [timeline for timeline, switch in described.history if switch > divergence]
    connection = clone_io.ReplicationConnection(source)
    try:
        connection.read_wal([*after, described.timeline][0], divergence, divergence + 1)
    except io.PostgresqlError as error:
        raise DamagedError(
            f"the primary does not keep its WAL from {wal.lsn_text(divergence)} on any more, which a rewound server "
            f"needs: {error}"
        ) from error
    finally:
        connection.close()


def _segments(work: Path, first: int, last: int, size: int) -> list[Path]:
    """Return the WAL files of a range of segment numbers, on any timeline."""
    wanted = {plan.segment_name(0, number * size, size)[8:] for number in range(first, last + 1)}
    files = sorted((work / "pg_wal").iterdir())
    return [file for file in files if _SEGMENT.fullmatch(file.name) and file.name[8:] in wanted]


def _save_wal(data: Path, common: int, local: plan.Local, attempt: plan.Attempt) -> None:
    """Copy the WAL that pg_rewind reads and may overwrite: with it the rewind can be repeated."""
    saved = _saved_directory(data)
    part = saved.with_name(saved.name + ".part")
    part.mkdir(mode=0o700)
    size = local.segment_size
    for file in _segments(work_directory(data), common // size, local.position // size, size):
        shutil.copyfile(file, part / file.name)
        io.sync(part / file.name)
    (part / "attempt.json").write_text(json.dumps(dataclasses.asdict(attempt)))
    io.sync(part / "attempt.json")
    io.sync(part)
    clone_io.rename(part, saved)


def _put_wal(data: Path, only: Callable[[str], bool]) -> None:
    """Put saved WAL files back."""
    work = work_directory(data)
    owner = work.stat()
    for file in sorted(_saved_directory(data).iterdir()):
        if _SEGMENT.fullmatch(file.name) and only(file.name):
            target = work / "pg_wal" / file.name
            shutil.copyfile(file, target)
            target.chmod(0o600)
            os.chown(target, owner.st_uid, owner.st_gid)
            io.sync(target)


def _complete_wal(data: Path, cluster: io.Cluster, divergence: int) -> None:
    """See that the rewound directory has all WAL that its recovery begins with.

    Before version 17 pg_rewind removes what the source does not keep any more, also where it is needed.
    """
    work = work_directory(data)
    located = io.Cluster(cluster.version, cluster.name, str(work), cluster.port, "")
    local = plan.read_control(io.control_data(located))
    size = local.segment_size
    label = (work / "backup_label").read_text(encoding="utf-8")
    match = re.search(r"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+)", label, re.MULTILINE)
    if match is None:
        raise DamagedError("pg_rewind left a backup_label without a start")
    before = plan.segment_name(0, divergence, size)[8:]
    present = {file.name[8:] for file in (work / "pg_wal").iterdir()}
    _put_wal(data, lambda name: name[8:] < before and name[8:] not in present)
    # An idle primary's end may be the place of the next record, behind the header of a file that is not there yet.
    first, last = wal.lsn(match[1]) // size, (local.position - LONG_HEADER - 1) // size
    found = {file.name[8:] for file in _segments(work, first, last, size)}
    missing = [
        name for number in range(first, last + 1)
        if (name := plan.segment_name(0, number * size, size)[8:]) not in found
    ]  # fmt: skip
    if missing:
        raise DamagedError(
            f"neither this member nor the primary keeps the WAL {missing[0]}, with which recovery begins"
        )


def rewind(
    cluster: io.Cluster,
    source: clone_io.Source,
    described: plan.Source,
    divergence: int,
    config_file: str,
    need_recovery: bool,
    timeout: int,
    lock: int,
) -> None:
    """Rewind the data directory, or go on with an interrupted rewind, and make it a standby."""
    data = cluster.data_directory
    work, saved = work_directory(data), _saved_directory(data)
    attempt = _attempt(data)
    if attempt is not None:
        local, _place = read_local(cluster)
        # The control file is the last that pg_rewind writes.
        if local.timeline == described.timeline:
            os.sync()
        else:
            _put_wal(data, lambda _name: True)
            _rewind_for_good(cluster, work, source, timeout, lock)
    else:
        attempt = plan.Attempt(described.system_identifier, described.timeline, divergence, _boot_id())
        clone_io.rename(data, work)
        try:
            if need_recovery:
                recover(cluster, work, config_file, timeout, lock)
            told = _run_rewind(cluster, work, source, timeout, lock, "--dry-run")
            match = _COMMON.search(told)
            if match is None:
                raise DamagedError(f"pg_rewind sees no need, where the WAL shows one: {told}")
            _require_wal(source, described, divergence)
            local, _place = read_local(cluster)
            _save_wal(data, wal.lsn(match[1]), local, attempt)
        except BaseException:
            settle(data)
            raise
        _rewind_for_good(cluster, work, source, timeout, lock)
    _complete_wal(data, cluster, attempt.divergence)
    clone_io.make_standby(work)
    if data.exists():
        data.rmdir()
    clone_io.rename(work, data)
    shutil.rmtree(saved)


def keep_name(data: Path, now: float) -> Path:
    """Return under which name the old data directory is kept."""
    return data.with_name(f"{data.name}.kept-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}")


def set_aside(data: Path, keep: Path) -> None:
    """Keep what an interrupted rewind left, together with its WAL."""
    work, saved = work_directory(data), _saved_directory(data)
    if work.exists():
        clone_io.rename(work, keep)
    if saved.exists():
        clone_io.rename(saved, keep.with_name(keep.name + ".wal"))
