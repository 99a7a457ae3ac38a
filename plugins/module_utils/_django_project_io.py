# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a project's files from a directory or a git repository, and packs the same files into the same archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._django_project_plan import wanted, without_virtualenvs

# One time for every packed file. Not 0: zip files, and so wheels built from the source, begin in 1980.
PACKED_MTIME = 1_000_000_000


class ProjectError(Exception):
    """The project cannot be read; the message says why and what to do."""


def _git(arguments: list[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> bytes:
    command = ["git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", *arguments]
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)
    if done.returncode:
        raise ProjectError(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _walk(directory: Path, prefix: str = "") -> list[str]:
    found = []
    for root, directories, files in os.walk(directory):
        here = Path(root).relative_to(directory).as_posix()
        below = "" if here == "." else here + "/"
        links = [name for name in directories if (Path(root) / name).is_symlink()]
        directories[:] = [name for name in directories if name not in links and wanted(f"{name}/x")]
        found += [prefix + below + name for name in [*files, *links]]
    return found


def list_directory(directory: Path) -> list[str]:
    """List the files of a project: what git knows or would add, else everything that `wanted` lets through."""
    if not directory.exists():
        raise ProjectError(f"the project directory {directory} does not exist on this machine")
    if not directory.is_dir():
        raise ProjectError(f"the project directory {directory} is not a directory")
    found: list[str] = []
    if shutil.which("git"):
        try:
            listed = _git(["ls-files", "-z", "-co", "--exclude-standard", "--deduplicate"], cwd=directory)
        except ProjectError:
            listed = b""  # not a work tree
        for name in filter(None, listed.decode(errors="surrogateescape").split("\0")):
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                found += _walk(path, name.rstrip("/") + "/")  # a submodule
            elif os.path.lexists(path):  # git also lists what was deleted but not committed
                found.append(name)
    if not found:
        # No work tree, or one that ignores this directory as a whole.
        found = _walk(directory)
    return sorted(without_virtualenvs(path for path in set(found) if wanted(path)))


def digest_tree(directory: Path, paths: list[str]) -> str:
    """Hash names, contents and executable bits: what a release can depend on, and nothing else."""
    digest = hashlib.sha256()
    for path in paths:
        full = directory / path
        status = full.lstat()
        if stat.S_ISLNK(status.st_mode):
            kind, content = b"l", os.fsencode(full.readlink())
        elif stat.S_ISREG(status.st_mode):
            kind, content = (b"x" if status.st_mode & 0o100 else b"f"), full.read_bytes()
        else:
            continue
        digest.update(b"%s %s\0" % (kind, os.fsencode(path)))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def tar_member(name: str, *, size: int = 0, mode: int = 0o644, mtime: int = PACKED_MTIME) -> tarfile.TarInfo:
    """Describe a file of an archive so that nothing of this machine or this moment is in it."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, mode, mtime
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def write_archive(directory: Path, paths: list[str], target: Path) -> None:
    """Write a deterministic .tar.gz of these files, complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in paths:
                full = directory / path
                status = full.lstat()
                if stat.S_ISLNK(status.st_mode):
                    member = tar_member(path, mode=0o777)
                    member.type, member.linkname = tarfile.SYMTYPE, str(full.readlink())
                    archive.addfile(member)
                elif stat.S_ISREG(status.st_mode):
                    content = full.read_bytes()
                    mode = 0o755 if status.st_mode & 0o100 else 0o644
                    archive.addfile(tar_member(path, size=len(content), mode=mode), io.BytesIO(content))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def prune_archives(directory: Path, keep: int = 5) -> None:
    """Keep the newest source archives of a cache."""
    archives = sorted(directory.glob("source-*.tar.gz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in archives[keep:]:
        path.unlink(missing_ok=True)


def checkout(url: str, version: str, cache: Path, environment: Mapping[str, str]) -> tuple[Path, str]:
    """Fetch a branch, tag or commit into a mirror and lay out its files; return the directory and the commit."""
    if not shutil.which("git"):
        raise ProjectError("git is not installed on this host")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror = cache / f"{name}.git"
    if not (mirror / "HEAD").exists():
        shutil.rmtree(mirror, ignore_errors=True)
        mirror.mkdir(parents=True, mode=0o700)
        _git(["init", "--bare", "--quiet", str(mirror)])
    full = len(version) == 40 and all(letter in "0123456789abcdef" for letter in version)
    commit = _known_commit(mirror, version) if full else ""
    if not commit:
        refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+HEAD:refs/flotilla/HEAD"]
        _git(["fetch", "--quiet", "--prune", "--no-write-fetch-head", url, *refs], cwd=mirror, environment=environment)
        names = [version, f"refs/heads/{version}"] if version else ["refs/flotilla/HEAD"]
        commit = next(filter(None, (_known_commit(mirror, one) for one in names)), "")
        if not commit:
            raise ProjectError(f"the repository has no branch, tag or commit '{version}'")
    tree = cache / f"{name}-{commit[:16]}"
    if not tree.exists():
        for old in cache.glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        temporary = cache / f"{name}-new"
        temporary.mkdir(mode=0o700)
        # git refuses names that lead out of the tree, and Debian 12's first Python 3.11 knows no filters.
        safe = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        with tarfile.open(fileobj=io.BytesIO(_git(["archive", "--format=tar", commit], cwd=mirror))) as archive:
            archive.extractall(temporary, **safe)  # type: ignore[arg-type]
        temporary.rename(tree)
    return tree, commit


def _known_commit(mirror: Path, version: str) -> str:
    try:
        return _git(["rev-parse", "--verify", "--quiet", f"{version}^{{commit}}"], cwd=mirror).decode().strip()
    except ProjectError:
        return ""
