# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Ask and tell nftables, and the timer that takes back what nobody confirms."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._firewall_plan import Connection, connection

NFT = "/usr/sbin/nft"
# Gone after a boot, as the rules on trial are.
TRIAL = Path("/run/flotilla-firewall")
CANDIDATE = TRIAL / "candidate.nft"
FORMER = TRIAL / "former.nft"
ROLLBACK = "flotilla-firewall-rollback"


class CommandFailed(Exception):
    """A command ended with an error."""


def run(command: Sequence[str], stdin: str = "") -> str:
    """What it prints; CommandFailed when it fails."""
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=environment, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandFailed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def installed() -> bool:
    return Path(NFT).exists()


def read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write(path: Path, text: str) -> None:
    """In one step: whoever reads it, or loses power, has the former or the new content."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def loaded_at_boot(unit: str, files: Mapping[str, str]) -> bool:
    """Whether systemd has the unit as these files say, and starts it at boot."""
    for path, content in files.items():
        if read(path) != content:
            return False
        found = Path(path).stat()
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) != (0, 0, 0o644):
            return False
    asked = ["systemctl", "show", "--property=UnitFileState,NeedDaemonReload", "--", unit]
    return set(run(asked).split()) == {"UnitFileState=enabled", "NeedDaemonReload=no"}


def load_at_boot(unit: str, files: Mapping[str, str]) -> None:
    """Write the unit, and have it started now, which loads what is kept once more, and at each boot."""
    for path, content in files.items():
        write(Path(path), content)
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", "--now", "--", unit])


def forget_at_boot(unit: str, files: Mapping[str, str], rules: str) -> None:
    """Remove the unit, its files and the rules. These come last: while they are there, the next run goes on."""
    if any(Path(path).name == unit and Path(path).exists() for path in files):  # or a run that was interrupted did it
        run(["systemctl", "disable", "--now", "--", unit])
    for path in files:
        Path(path).unlink(missing_ok=True)
    run(["systemctl", "daemon-reload"])
    Path(rules).unlink(missing_ok=True)


def live(table: str) -> str | None:
    """The table as nftables lists it, None when there is none."""
    with contextlib.suppress(CommandFailed):
        return run([NFT, "--stateless", "list", "table", "inet", table])
    return None


def check(text: str) -> None:
    """Whether the kernel would take the rules."""
    run([NFT, "--check", "--file", "-"], text)


def listing(text: str, table: str) -> str:
    """How nftables lists the table once the rules are loaded: they are, in a network that nothing is connected to."""
    script = f"{NFT} --file - && {NFT} --stateless list table inet {table}"
    return run(["unshare", "--net", "--", "sh", "-c", script], text)


def load(path: Path) -> None:
    run([NFT, "--file", str(path)])


def without(table: str) -> str:
    """The commands after which the table is not there, whether it was or not."""
    return f"table inet {table}\ndelete table inet {table}\n"


def pending() -> bool:
    """Whether rules are on trial: the timer, or what it starts, runs."""
    units = [f"{ROLLBACK}.timer", f"{ROLLBACK}.service"]
    states = subprocess.run(["systemctl", "is-active", *units], capture_output=True, text=True, check=False).stdout
    return any(state in ("active", "activating") for state in states.split())


def stop_timer() -> None:
    with contextlib.suppress(CommandFailed):  # it is gone
        run(["systemctl", "stop", f"{ROLLBACK}.timer"])


def start_timer(seconds: int) -> None:
    run(
        [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={ROLLBACK}",
            f"--on-active={seconds}s",
            "--timer-property=AccuracySec=100ms",
            "--description=Take back the rules of the firewall that nobody confirmed",
            NFT,
            "--file",
            str(FORMER),
        ]
    )


def begin(text: str, table: str, seconds: int) -> None:
    """Put the rules in force, for so many seconds."""
    if pending():
        # What those rules replaced is what was there before: it is still what is restored.
        stop_timer()
    else:
        write(FORMER, without(table) + (live(table) or ""))
    write(CANDIDATE, text)
    start_timer(seconds)
    load(CANDIDATE)


def keep(path: str, text: str) -> None:
    """Make what is on trial last. The file comes first: a run that ends in between is finished by the next one."""
    write(Path(path), text)
    stop_timer()
    shutil.rmtree(TRIAL, ignore_errors=True)


def remove(table: str) -> None:
    run([NFT, "--file", "-"], without(table))


def ssh_connection() -> Connection | None:
    """The connection by which this module came here. sudo drops the variable, the processes above have it."""
    found = connection(os.environ.get("SSH_CONNECTION", ""))
    pid = os.getppid()
    while found is None and pid > 1:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
        except OSError:
            return None
        for item in environment.split(b"\0"):
            if item.startswith(b"SSH_CONNECTION="):
                found = connection(item.partition(b"=")[2].decode("ascii", "replace"))
        pid = int(parent)
    return found
