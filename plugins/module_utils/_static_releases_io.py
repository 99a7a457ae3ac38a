# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Read packs, write the served tree, fetch from peers. Decides nothing that _static_releases_plan can decide."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import tempfile
import urllib.parse
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from ansible_collections.flotilla.django.plugins.module_utils import _static_releases_plan as plans
from ansible_collections.flotilla.django.plugins.module_utils._static_releases_plan import Info, Manifest, Pack

CHUNK = 1 << 20


class StaticError(Exception):
    """Something that the user has to look at; its text says what and where."""


@dataclass(frozen=True)
class Member:
    """A file in a pack."""

    info: Info
    mtime: int


def _copy(source: IO[bytes], target: IO[bytes] | None = None) -> Info:
    digest, size = hashlib.sha256(), 0
    while block := source.read(CHUNK):
        digest.update(block)
        size += len(block)
        if target is not None:
            target.write(block)
    return Info(size, digest.hexdigest())


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say which pack is the bad one."""
    try:
        yield
    except (tarfile.TarError, ValueError, EOFError, zlib.error, OSError) as error:
        raise StaticError(f"{name}: {error}; nothing of it was published") from error


def _members(stream: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes]]]:
    """Yield the files of a pack; raise on anything that is neither a file nor a directory below static/."""
    stream.seek(0)
    with gzip.GzipFile(fileobj=stream) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                path = plans.member_path(member.name)
                if member.isdir():
                    continue
                if path is None or not member.isreg():
                    raise ValueError(f"{member.name!r} is no plain file")
                content = archive.extractfile(member)
                assert content is not None
                yield path, member, content
        while plain.read(CHUNK):  # only at its very end gzip compares its checksum
            pass


@dataclass
class Store:
    """The directories of a static server below its root."""

    root: Path

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def health(self) -> Path:
        return self.root / "health"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time: two deploys that overlap wait for each other."""
        descriptor = os.open(self.manifests, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def exists(self) -> bool:
        return all(path.is_dir() for path in (self.files, self.releases, self.manifests))

    # What is there

    def read_manifests(self) -> dict[str, Manifest]:
        found = {}
        for path in sorted(self.manifests.glob("*.json")):
            try:
                manifest = plans.from_json(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StaticError(f"{path} is damaged ({error}); remove it and run again to publish it anew") from error
            found[manifest.release_id] = manifest
        return found

    def transfers(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.releases) if plans.release_of_transfer(entry.name))

    def pack(self, name: str) -> Pack | None:
        """The static pack of this name, not read yet."""
        release_id = plans.release_of_pack(name)
        path = self.releases / name
        if release_id is None or path.is_symlink() or not path.is_file():
            return None
        status = path.stat()
        return Pack(release_id, name, status.st_size, status.st_mtime_ns)

    def with_hash(self, pack: Pack) -> Pack:
        with (self.releases / pack.file).open("rb") as stream:
            return replace(pack, sha256=_copy(stream).sha256)

    def present(self, files: Mapping[str, Member]) -> dict[str, Info | None]:
        """What is in the tree at these paths and their compressed siblings, read only where the size agrees."""
        result: dict[str, Info | None] = {}
        for path in [*files, *(path + suffix for path in files for suffix in plans.COMPRESSED)]:
            if path in result:
                continue
            there = self.files / path
            if there.is_dir():
                if path in files:
                    raise StaticError(
                        f"{path} is a file in this release and a directory in another that is still served"
                    )
                continue
            try:
                size = there.stat().st_size
            except NotADirectoryError as error:
                raise StaticError(f"a directory of {path} is a file in another release that is still served") from error
            except OSError:
                result[path] = None
                continue
            if path in files and files[path].info.size == size:
                with there.open("rb") as stream:
                    result[path] = _copy(stream)
            else:
                result[path] = Info(size, "")
        return result

    def drifted(self, manifests: Iterable[Manifest]) -> dict[str, list[str]]:
        """By release the files that it should have in the tree and that are gone or have another size."""
        result: dict[str, list[str]] = {}
        for path, (release_id, info) in plans.expected(manifests).items():
            try:
                size = (self.files / path).lstat().st_size
            except OSError:
                size = -1
            if size != info.size:
                result.setdefault(release_id, []).append(path)
        return result

    def inspect(self, stream: IO[bytes], name: str) -> dict[str, Member]:
        """Read a whole pack without writing anything."""
        result: dict[str, Member] = {}
        with _reading(name):
            for path, member, content in _members(stream):
                result[path] = Member(_copy(content), max(0, int(member.mtime)))
        problem = plans.tree_problem(result)
        if problem:
            raise StaticError(f"{name}: {problem}; nothing of it was published")
        return result

    # Changes

    def write(
        self, stream: IO[bytes], pack: Pack, members: Mapping[str, Member], publication: plans.Publication
    ) -> None:
        """Bring the planned files into the tree: each complete under another name first, then renamed."""
        work = Path(tempfile.mkdtemp(prefix=".publish-", dir=self.root))
        try:
            for path in publication.stale:
                (self.files / path).unlink(missing_ok=True)
            writes = publication.writes
            for path, _member, content in _members(stream):
                if path not in writes:
                    continue
                target, part = self.files / path, work / "part"
                with part.open("wb") as out:
                    _copy(content, out)
                    os.fchmod(out.fileno(), 0o644)
                there = None
                with contextlib.suppress(OSError):
                    status = target.stat()
                    there = (int(status.st_mtime), status.st_size)
                time = plans.modified(members[path].mtime, members[path].info.size, there)
                os.utime(part, (time, time))
                self._make_directories(target.parent)
                part.replace(target)
            # The manifest says that the files are there: they must be, also after the power failed.
            os.sync()
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _make_directories(self, directory: Path) -> None:
        if not directory.is_dir():
            self._make_directories(directory.parent)
            directory.mkdir()
            directory.chmod(0o755)

    def _write_text(self, path: Path, text: str) -> None:
        part = path.with_name(f".{path.name}.part")
        with part.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
        part.replace(path)

    def write_manifest(self, manifest: Manifest) -> None:
        text = json.dumps(plans.to_json(manifest), indent=1, sort_keys=True) + "\n"
        self._write_text(self.manifests / f"{manifest.release_id}.json", text)

    def write_health(self) -> None:
        self._write_text(self.health, "ok\n")

    def remove(self, pruning: plans.Pruning) -> None:
        """Packs first, manifests last: the next run removes what an interrupted one left, and publishes none of it."""
        for name in pruning.packs:
            (self.releases / name).unlink(missing_ok=True)
        for path in pruning.files:
            target = self.files / path
            target.unlink(missing_ok=True)
            for directory in target.parents:
                if directory == self.files:
                    break
                with contextlib.suppress(OSError):
                    directory.rmdir()
        for release_id in pruning.releases:
            (self.manifests / f"{release_id}.json").unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what an interrupted run left behind."""
        for path in self.root.glob(".publish-*"):
            shutil.rmtree(path, ignore_errors=True)

    # Proof

    def unserved(self, url: str, files: Mapping[str, Info], *, timeout: float) -> list[str]:
        """The files that the web server at this URL does not give out with their size, each with what it says instead.

        Compressed siblings are no addresses of their own, they are chosen by Accept-Encoding; hidden files are refused.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise StaticError(f"prove: {url!r} is no http:// URL")
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
        wrong = []
        try:
            for path, info in sorted(files.items()):
                if (path.endswith(plans.COMPRESSED) and path.rpartition(".")[0] in files) or f"/{path}".count("/."):
                    continue
                connection.request(
                    "HEAD", parts.path + urllib.parse.quote(path), headers={"Accept-Encoding": "identity"}
                )
                response = connection.getresponse()
                response.read()
                size = response.headers.get("Content-Length", "no size")
                if response.status != 200 or size != str(info.size):
                    wrong.append(f"{path}: {response.status}, {size}, wanted 200, {info.size}")
        except (OSError, http.client.HTTPException) as error:
            raise StaticError(f"{url} does not answer: {error or type(error).__name__}") from error
        finally:
            connection.close()
        return wrong

    # Peers

    def fetch(self, peer: str, wanted: Collection[str] | None, *, timeout: float, pretend: bool) -> list[str]:
        """Fetch the packs that a peer has and this server lacks; return their names. None wants all releases."""
        parts = urllib.parse.urlsplit(peer)
        if parts.scheme != "http" or not parts.hostname:
            raise StaticError(f"peers: {peer!r} is no http:// URL")
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
        here, fetched = set(self.transfers()), []
        try:
            for entry in self._listing(connection, peer):
                name, size = str(entry.get("name")), int(entry.get("size", -1))
                release_id = plans.release_of_transfer(name)
                if release_id is None or name in here or (wanted is not None and release_id not in wanted):
                    continue
                fetched.append(name)
                if not pretend:
                    self._download(connection, peer, name, size, parsedate_to_datetime(str(entry["mtime"])).timestamp())
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise StaticError(f"{peer}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        return fetched

    def _listing(self, connection: http.client.HTTPConnection, peer: str) -> list[dict[str, Any]]:
        connection.request("GET", "/releases/")
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise StaticError(f"{peer}: GET /releases/ was answered with {response.status} {response.reason}")
        listing = json.loads(text)
        return sorted(listing, key=lambda entry: str(entry.get("name")))

    def _download(
        self, connection: http.client.HTTPConnection, peer: str, name: str, size: int, modified: float
    ) -> None:
        connection.request("GET", f"/releases/{urllib.parse.quote(name)}")
        response = connection.getresponse()
        if response.status != 200:
            response.read()
            raise StaticError(f"{peer}: GET {name} was answered with {response.status} {response.reason}")
        work = Path(tempfile.mkdtemp(prefix=".publish-", dir=self.root))
        try:
            part = work / name
            with part.open("wb") as out:
                got = _copy(response, out).size
                os.fchmod(out.fileno(), 0o644)
                os.fsync(out.fileno())
            if got != size:
                raise StaticError(f"{peer}: {name} has {got} bytes, wanted {size}")
            os.utime(part, (modified, modified))
            part.replace(self.releases / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
