# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, processes and HTTP of the release modules."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ansible_collections.flotilla.django.plugins.module_utils._django_project_io import PACKED_MTIME, tar_member
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import (
    Host,
    environment_link,
    environment_of,
    is_environment,
    is_release_id,
    pack_problem,
    prune,
    static_mtime,
    tail,
)

PYTHON = "/usr/bin/python3"
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CHUNK = 1 << 20
GZIP_TRAILER = 8
# How much nicer building and installing are than what answers requests on the same host meanwhile (nice(2)).
BEHIND_REQUESTS = 10


class ReleaseError(Exception):
    """A release cannot be built, moved or installed; the message says why and what to do."""


class TransferError(ReleaseError):
    """A server could not be reached at all."""


@dataclass(frozen=True)
class Account:
    """The unprivileged account that runs a project's code."""

    name: str
    uid: int
    gid: int
    home: Path


@dataclass
class Clock:
    """How long each step took."""

    durations: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.durations[name] = round(time.monotonic() - start, 2)


def this_host() -> Host:
    """Describe the machine that this runs on, by its system Python and not by the one that Ansible uses."""
    full = platform.python_version()
    if os.path.realpath(sys.executable) != os.path.realpath(PYTHON):
        code = "import platform; print(platform.python_version())"
        done = subprocess.run([PYTHON, "-I", "-c", code], capture_output=True, text=True, check=True)
        full = done.stdout.strip()
    release = ""
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            if line.startswith("VERSION_ID="):
                release = line.partition("=")[2].strip('"')
    return Host(python=".".join(full.split(".")[:2]), python_full=full, arch=platform.machine(), debian=release)


def run(
    command: list[str],
    *,
    what: str,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 3600,
    hint: str = "",
) -> str:
    """Run a command with nothing of our own environment; return its output. ReleaseError holds its last lines."""
    env = {"PATH": CLEAN_PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(environment or {})}
    identity: dict[str, Any] = {}
    if account and os.geteuid() == 0:
        identity = {"user": account.uid, "group": account.gid, "extra_groups": []}
        env.setdefault("HOME", str(account.home))
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        umask=0o022,
        **identity,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{what} did not finish within {timeout:.0f} s and was ended") from error
    finally:
        # Whatever the project's code left in the background ends with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        advice = f"\n{hint}" if hint else ""
        raise ReleaseError(f"{what} failed with code {process.returncode}:\n{tail(output)}{advice}")
    return output


def end_processes(account: Account) -> None:
    """End every process of the account that runs the project's code, before root reads what it wrote."""
    if os.geteuid() != 0 or account.uid == 0:
        return
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if path.stat().st_uid == account.uid:
                    os.kill(int(path.name), signal.SIGKILL)


def sha256_file(path: Path, size: int = sys.maxsize) -> str:
    """Hash a file, or the first bytes of it."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(min(CHUNK, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, Any], mode: int = 0o644) -> None:
    """Write a JSON file, complete and on the disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(mode)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; one that is missing or broken is empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# Archives


@dataclass(frozen=True)
class Entry:
    """One file of a pack."""

    name: str
    path: Path
    mtime: int = PACKED_MTIME


def tree_entries(directory: Path, prefix: str, wanted: Callable[[str], bool] = lambda name: True) -> list[Entry]:
    """List regular files, and links that stay inside, of a tree that an unprivileged account wrote."""
    entries = []
    top = os.path.realpath(directory)
    for root, directories, files in os.walk(directory):
        below = Path(root).relative_to(directory).as_posix()
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        directories[:] = [name for name in directories if name not in links and wanted(f"{name}/x")]
        for name in [*files, *links]:
            path = Path(root) / name
            relative = name if below == "." else f"{below}/{name}"
            if not wanted(relative):
                continue
            if path.is_symlink():
                target = os.path.realpath(path)
                if path.readlink().is_absolute() or not target.startswith(top + os.sep):
                    continue
            elif not path.is_file():
                continue
            entries.append(Entry(prefix + relative, path))
    return entries


@dataclass(frozen=True)
class Slice:
    """A part of a file."""

    path: Path
    begin: int
    end: int


def write_pack(target: Path, *parts: Iterable[Entry] | Slice) -> dict[str, Any]:
    """Write a deterministic .tar.gz beside its final place; return its hash and size. The caller renames it.

    Each part is an archive of its own behind the one before, given as its entries, or taken from another pack. Where
    there are several, hash and size of the first are told, too: it can be had and unpacked alone. So is where the last
    one ends: behind it comes gzip's checksum of all of them, because the end of a file is what remote_state() asks for.
    """
    ends = []
    with target.open("wb") as raw:
        for part in parts:
            if isinstance(part, Slice):
                with part.path.open("rb") as stream:
                    stream.seek(part.begin)
                    _copy(stream, raw, part.end - part.begin)
            else:
                _write_archive(raw, part)
            ends.append(raw.tell())
        raw.flush()
        if len(ends) > 1:
            raw.write(gzip.compress(sha256_file(target).encode(), mtime=0))
            raw.flush()
        os.fsync(raw.fileno())
    pack: dict[str, Any] = {"sha256": sha256_file(target), "size": target.stat().st_size}
    if len(ends) > 1:
        pack["head"] = {"size": ends[0], "sha256": sha256_file(target, ends[0])}
        pack["end"] = ends[-1]
    return pack


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while block := source.read(min(CHUNK, size)):
        target.write(block)
        size -= len(block)
    if size:
        raise ReleaseError(f"{source.name} is shorter than it was")


def _write_archive(raw: IO[bytes], entries: Iterable[Entry]) -> None:
    # Most of it is compressed already: the quickest level is enough for the rest.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.path.is_symlink():
                member = tar_member(entry.name, mode=0o777, mtime=entry.mtime)
                member.type, member.linkname = tarfile.SYMTYPE, str(entry.path.readlink())
                archive.addfile(member)
                continue
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as stream:
                status = os.fstat(stream.fileno())
                mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                archive.addfile(tar_member(entry.name, size=status.st_size, mode=mode, mtime=entry.mtime), stream)


def unpack(archive: Path, target: Path, owner: Account | None = None, position: int = 0) -> None:
    """Unpack the part of an archive that begins at a position: plain files, directories and links that stay inside."""
    top = target.resolve()
    with archive.open("rb") as stream:
        stream.seek(position)
        _unpack(archive.name, stream, target, top)
    if owner and os.geteuid() == 0:
        for root, directories, files in os.walk(target):
            for name in [".", *directories, *files]:
                os.chown(Path(root) / name, owner.uid, owner.gid, follow_symlinks=False)


def _unpack(name: str, stream: IO[bytes], target: Path, top: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r:gz") as packed:
        for member in packed:
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts or not parts:
                raise ReleaseError(f"{name} holds the name {member.name!r}, which leads out of it")
            path = target / member.name
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, mode=0o755)
            if not path.parent.resolve().is_relative_to(top):
                raise ReleaseError(f"{name} holds {member.name!r} behind a link that leads out of it")
            if member.isfile():
                source = packed.extractfile(member)
                if source is None:
                    raise ReleaseError(f"{name} holds {member.name!r} without content")
                with path.open("xb") as stream:
                    shutil.copyfileobj(source, stream, CHUNK)
                path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
                os.utime(path, (member.mtime, member.mtime))
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.isdir():
                path.mkdir(mode=0o755, exist_ok=True)
            else:
                raise ReleaseError(f"{name} holds {member.name!r}, which is neither file nor link")


def static_entries(directory: Path) -> list[Entry]:
    """List collected files, each with a time that its content decides; links are followed only inside."""
    entries = []
    top = os.path.realpath(directory)
    for root, _directories, files in os.walk(directory):
        for name in files:
            path = Path(root) / name
            if path.is_symlink():
                real = Path(os.path.realpath(path))
                if not str(real).startswith(top + os.sep) or not real.is_file():
                    continue
                path, shown = real, Path(root) / name
            else:
                shown = path
            # A compressed file has the time of the file that it stands for.
            original = path.with_suffix("") if path.suffix in (".gz", ".br") else path
            decisive = original if original.is_file() else path
            mtime = static_mtime(sha256_file(decisive))
            entries.append(Entry(f"static/{shown.relative_to(directory).as_posix()}", path, mtime))
    return entries


# Packs, as the build host keeps them


def load_pack(directory: Path, name: str) -> dict[str, Any]:
    """Read the index of a pack; empty where a file of it is missing or not what was written."""
    index = read_json(directory / f"{name}.json")
    packs = index.get("packs")
    if not isinstance(packs, dict) or {"release", "static"} - set(packs):
        return {}
    for pack in packs.values():
        path = directory / str(pack["file"])
        try:
            status = path.stat()
        except OSError:
            return {}
        if status.st_size != pack["size"]:
            return {}
        if status.st_mtime_ns != pack["mtime_ns"] and sha256_file(path) != pack["sha256"]:
            return {}
    return index


def list_packs(directory: Path) -> list[str]:
    """Name the packs, newest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in directory.glob("*.json"):
            if is_release_id(path.stem):
                found.append((path.stat().st_mtime_ns, path.stem))
    return [name for _time, name in sorted(found, reverse=True)]


def public_packs(directory: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the other hosts need to know of a pack's files."""
    return {
        kind: {
            "file": pack["file"],
            "path": str(directory / pack["file"]),
            "sha256": pack["sha256"],
            "size": pack["size"],
            **({"head": pack["head"]} if "head" in pack else {}),
        }
        for kind, pack in index.get("packs", {}).items()
    }


def linked_releases(home: Path) -> list[str]:
    """Name the releases that `current` and `previous` point at."""
    found = []
    for link in ("current", "previous"):
        with contextlib.suppress(OSError):
            found.append((home / link).readlink().name)
    return found


# HTTP


def _connect(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ReleaseError(f"{url} is no http:// URL")
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout), parts.path


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def remote_state(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes] | None:
    """Ask a static server for the size of an archive and its last eight bytes, which are gzip's checksum."""
    connection.request("GET", path, headers={"Range": f"bytes=-{GZIP_TRAILER}"})
    response = connection.getresponse()
    if response.status in (404, 416):  # 416: an empty file
        response.read()
        return None
    if response.status != 206:
        connection.close()
        raise ReleaseError(f"GET {path} of the last bytes was answered with {response.status} {response.reason}")
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return (int(total) if total.isdigit() else -1), response.read()


def local_state(path: Path) -> tuple[int, bytes]:
    """Return the same of a file here."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - GZIP_TRAILER))
        return size, stream.read()


def send(base: str, directory: Path, names: Iterable[str], *, timeout: float, pretend: bool) -> list[str]:
    """Put the archives that a static server lacks there; return their names."""
    connection, prefix = _connect(base, timeout)
    sent = []
    try:
        for name in names:
            path = prefix.rstrip("/") + "/" + urllib.parse.quote(name)
            wanted = local_state(directory / name)
            if remote_state(connection, path) == wanted:
                continue
            sent.append(name)
            if pretend:
                continue
            with (directory / name).open("rb") as stream:
                connection.request("PUT", path, body=stream, headers={"Content-Length": str(wanted[0])})
                response = connection.getresponse()
                response.read()
            if response.status not in (200, 201, 204):
                raise ReleaseError(f"{base}: PUT {name} was answered with {response.status} {response.reason}")
            if remote_state(connection, path) != wanted:
                raise ReleaseError(f"{base}: {name} is not the same there after it was sent")
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(f"{base}: {_describe(error)}") from error
    finally:
        connection.close()
    return sent


def download(url: str, target: Path, sha256: str, *, timeout: float, size: int = 0) -> None:
    """Fetch a file, or its first bytes where a size is given; only the expected content is accepted."""
    connection, path = _connect(url, timeout)
    digest = hashlib.sha256()
    try:
        connection.request("GET", path, headers={"Range": f"bytes=0-{size - 1}"} if size else {})
        response = connection.getresponse()
        if response.status != (206 if size else 200):
            raise ReleaseError(f"{url}: {response.status} {response.reason}")
        with target.open("wb") as stream:
            while block := response.read(CHUNK):
                digest.update(block)
                stream.write(block)
    except (OSError, http.client.HTTPException) as error:
        raise ReleaseError(f"{url}: {_describe(error)}") from error
    finally:
        connection.close()
    if digest.hexdigest() != sha256:
        raise ReleaseError(f"{url}: its sha256 is {digest.hexdigest()}, wanted {sha256}")


# An installed release


@dataclass
class Installer:
    """Puts releases below `home` and removes old ones. A release is installed when its release.json is there.

    Its `venv` points at an environment, which all releases with the same packages share. That one is complete when its
    environment.json is there.
    """

    home: Path
    host: Host
    host_name: str
    clock: Clock = field(default_factory=Clock)

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def environments(self) -> Path:
        return self.home / "environments"

    def has_environment(self, name: str) -> bool:
        """Tell whether an environment is completely installed."""
        place = self.environments / name
        return is_environment(name) and (place / "environment.json").exists() and (place / "venv/bin/python").exists()

    def installed(self, name: str) -> dict[str, Any]:
        """Return release.json of a release that is completely installed, else nothing."""
        directory = self.releases / name
        release = read_json(directory / "release.json")
        if release.get("id") != name or not (directory / "venv/bin/python").exists():
            return {}
        return release

    def install(self, name: str, pack: Path, head: int) -> dict[str, Any]:
        """Install a pack, whose first so many bytes are the release's own, beside what runs.

        An interrupted installation is begun anew.
        """
        target = self.releases / name
        hidden = self.releases / f".{name}.release.json"
        self.releases.mkdir(parents=True, exist_ok=True, mode=0o755)
        if target.exists():
            # Without its mark first: an interruption from here on leaves something that is plainly not installed.
            (target / "release.json").unlink(missing_ok=True)
            shutil.rmtree(target)
        with self.clock.step("unpack"):
            target.mkdir(mode=0o755)
            unpack(pack, target)
        release = read_json(target / "release.json")
        if release.get("id") != name:
            raise ReleaseError(f"{pack.name} holds the release {release.get('id')!r}, wanted {name}")
        (target / "release.json").rename(hidden)
        problem = pack_problem(release, self.host, self.host_name)
        if problem:
            shutil.rmtree(target)
            hidden.unlink()
            raise ReleaseError(problem)
        environment = str(release["environment"])
        if not self.has_environment(environment):
            self._install_environment(environment, pack, head)
        (target / "venv").symlink_to(environment_link(environment))
        with self.clock.step("compile"):
            # The system's own Python compiles: no code of the project is run, and the service user cannot write.
            compiled = [PYTHON, "-I", "-m", "compileall", "-q", "source"]
            with contextlib.suppress(ReleaseError):  # some packages carry files that are templates of Python files
                run(compiled, what="compileall", cwd=target)
        os.sync()
        hidden.rename(target / "release.json")
        return release

    def _install_environment(self, name: str, pack: Path, position: int) -> None:
        target = self.environments / name
        if target.exists():
            (target / "environment.json").unlink(missing_ok=True)
            shutil.rmtree(target)
        with self.clock.step("unpack environment"):
            target.mkdir(parents=True, mode=0o755)
            unpack(pack, target, position=position)
        with self.clock.step("install"):
            install_wheels(target / "tools/uv", target, target / "venv", cache=target / ".cache")
            place_compiled(target / "pycache", target / "venv")
        (target / "venv/.lock").unlink(missing_ok=True)  # uv leaves it writable for everybody
        for directory in ("wheels", "tools", "pycache", ".cache"):
            shutil.rmtree(target / directory, ignore_errors=True)
        os.sync()
        write_json(target / "environment.json", {"id": name, "python": self.host.python_full})

    def prune(self, keep: int, wanted: str, pretend: bool) -> list[str]:
        """Remove old and unfinished releases, and environments that no release has; return the releases' names."""
        if not self.releases.is_dir():
            return []
        complete, broken = [], []
        for path in self.releases.iterdir():
            mark = path / "release.json"
            if is_release_id(path.name) and mark.exists():
                complete.append((mark.stat().st_ctime_ns, path.name))
            elif path.name != wanted:
                broken.append(path.name)
        newest = [name for _time, name in sorted(complete, reverse=True)]
        protected = [wanted, *linked_releases(self.home)]
        removed = prune(newest, keep, protected).remove + [name for name in broken if name not in protected]
        if not pretend:
            for name in removed:
                path = self.releases / name
                if path.is_dir() and not path.is_symlink():
                    (path / "release.json").unlink(missing_ok=True)
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self._prune_environments()
        return sorted(removed)

    def _prune_environments(self) -> None:
        links = [path.readlink() for path in self.releases.glob("*/venv") if path.is_symlink()]
        shared = {environment_of(str(link)) for link in links}
        for path in self.environments.iterdir() if self.environments.is_dir() else []:
            if path.name not in shared:
                (path / "environment.json").unlink(missing_ok=True)
                shutil.rmtree(path)


def is_compiled(name: str) -> bool:
    """Pick the compiled files of a tree; directories, asked for as `name/x`, are all walked."""
    return name.endswith(("/x", ".pyc"))


def place_compiled(compiled: Path, venv: Path) -> None:
    """Move the directories of compiled files beside the files that they were made from."""
    for root, directories, _files in os.walk(compiled):
        if "__pycache__" in directories:
            directories.remove("__pycache__")
            place = venv / Path(root).relative_to(compiled)
            if place.is_dir() and not (place / "__pycache__").exists():
                (Path(root) / "__pycache__").rename(place / "__pycache__")


def uv_environment(cache: Path) -> dict[str, str]:
    """Set uv up to use this host's Python and nothing from outside."""
    return {
        "UV_CACHE_DIR": str(cache),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON": PYTHON,
        "UV_NO_PROGRESS": "1",
        "UV_LINK_MODE": "hardlink",
    }


def install_wheels(uv: Path, pack: Path, venv: Path, *, cache: Path, account: Account | None = None) -> None:
    """Make a virtual environment from a directory with wheels/ and requirements.txt, without any network."""
    environment = {**uv_environment(cache), "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}
    run([str(uv), "venv", "--quiet", str(venv)], what="uv venv", environment=environment, account=account, cwd=pack)
    command = [str(uv), "pip", "install", "--quiet", "--python", str(venv / "bin/python"), "--no-index", "--find-links"]
    command += [str(pack / "wheels"), "--require-hashes", "--no-deps", "-r", str(pack / "requirements.txt")]
    run(command, what="uv pip install (offline)", environment=environment, account=account, cwd=pack)
