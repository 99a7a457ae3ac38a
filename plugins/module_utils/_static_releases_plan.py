# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Decide which static files a server gets, replaces and drops. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PACK = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9._+-]*)-static\.tar\.gz")
# What a static server hands out to the other hosts: the two packs of a release.
TRANSFERABLE = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9._+-]*?)(?:-static)?\.tar\.gz")
RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
PREFIX = "static/"
COMPRESSED = (".br", ".gz")
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Info:
    """Size and content of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Pack:
    """A pack on disk: what stat says of it, and its hash where it had to be read."""

    release_id: str
    file: str
    size: int
    mtime_ns: int
    sha256: str = ""

    @property
    def age(self) -> tuple[int, str]:
        """Packs that came at the same moment are ordered by name, on all servers alike."""
        return (self.mtime_ns, self.release_id)


@dataclass(frozen=True)
class Manifest:
    """What a published release brought."""

    pack: Pack
    files: Mapping[str, Info] = field(default_factory=dict)

    @property
    def release_id(self) -> str:
        return self.pack.release_id


@dataclass
class Publication:
    """The steps that bring one release into the served tree."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # compressed siblings of the content that was replaced

    @property
    def writes(self) -> set[str]:
        return {*self.added, *self.replaced}


@dataclass
class Pruning:
    """What goes with the releases that are not kept."""

    releases: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    packs: list[str] = field(default_factory=list)
    restore: list[str] = field(default_factory=list)  # kept releases whose content a removed one had replaced


def release_of_pack(name: str) -> str | None:
    """Return the release whose static pack has this file name."""
    match = PACK.fullmatch(name)
    return match["id"] if match else None


def release_of_transfer(name: str) -> str | None:
    """Return the release to which a pack of either kind belongs."""
    match = TRANSFERABLE.fullmatch(name)
    return match["id"] if match else None


def check_release_ids(names: Iterable[str], option: str) -> None:
    for name in names:
        if not RELEASE_ID.fullmatch(name):
            raise ValueError(
                f"{option}: {name!r} is no release: letters, digits and . _ + - are allowed, a letter or digit first"
            )


def check_packs(packs: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the packs that the caller vouches for, by file name."""
    wanted: dict[str, Mapping[str, Any]] = {}
    for pack in packs:
        check_release_ids([str(pack["release_id"])], "packs")
        if release_of_pack(str(pack["file"])) != pack["release_id"]:
            raise ValueError(f"packs: file is {pack['file']}, wanted {pack['release_id']}-static.tar.gz")
        if pack.get("sha256") and not SHA256.fullmatch(str(pack["sha256"])):
            raise ValueError(f"packs: sha256 of {pack['file']} is {pack['sha256']!r}, wanted 64 hexadecimal digits")
        wanted[str(pack["file"])] = pack
    return wanted


def member_path(name: str) -> str | None:
    """Return where a member of a pack goes, below the served tree; None for the top directory itself."""
    shown = name.removeprefix("./")
    if shown.rstrip("/") == PREFIX.rstrip("/"):
        return None
    parts = shown.rstrip("/").split("/")
    if not shown.startswith(PREFIX) or any(part in ("", ".", "..") for part in parts) or "\0" in shown or "\n" in shown:
        raise ValueError(f"{name!r} does not lead to a place below {PREFIX}")
    return "/".join(parts[1:])


def tree_problem(paths: Collection[str]) -> str:
    """Say which path a pack has both as a file and as a directory, or ''."""
    files = set(paths)
    for path in sorted(files):
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in files:
                return f"{parent!r} is a file and a directory"
    return ""


def is_published(pack: Pack, manifest: Manifest | None) -> bool:
    """Say whether the manifest is that of this very pack; the hash decides when the pack was touched."""
    if manifest is None:
        return False
    known = manifest.pack
    if (known.size, known.mtime_ns) == (pack.size, pack.mtime_ns):
        return True
    return bool(pack.sha256) and known.sha256 == pack.sha256


def expected(manifests: Iterable[Manifest]) -> dict[str, tuple[str, Info]]:
    """Return what must be served: for each path the newest release that has it, and its content.

    A compressed sibling belongs to its original: where a newer release brings another original without it, it goes.
    """
    result: dict[str, tuple[str, Info]] = {}
    for manifest in sorted(manifests, key=lambda item: item.pack.age):
        for path, info in manifest.files.items():
            if path in result and result[path][1] != info:
                for sibling in (path + suffix for suffix in COMPRESSED):
                    if sibling not in manifest.files:
                        result.pop(sibling, None)
            result[path] = (manifest.release_id, info)
    return result


def publish(
    pack: Pack, files: Mapping[str, Info], present: Mapping[str, Info | None], others: Iterable[Manifest]
) -> Publication:
    """Plan one release. ``present`` is what is in the tree at those paths and their siblings now.

    What a newer release has is left alone, so the order in which packs arrive makes no difference.
    """
    rest = [other for other in others if other.release_id != pack.release_id]
    wanted = expected([Manifest(pack, files), *rest])
    result = Publication()
    for path, info in sorted(files.items()):
        if path not in wanted or wanted[path][0] != pack.release_id:
            continue
        there = present.get(path)
        if there is None:
            result.added.append(path)
        elif there != info:
            result.replaced.append(path)
    for path in result.writes:
        siblings = (path + suffix for suffix in COMPRESSED)
        result.stale += [name for name in siblings if name not in wanted and present.get(name) is not None]
    result.stale.sort()
    return result


def prune(keep: Sequence[str], current: str, manifests: Iterable[Manifest], transfers: Iterable[str]) -> Pruning:
    """Plan the removal of all releases but those of ``keep``, the current one and the newest one."""
    if not keep:
        raise ValueError("keep is empty: name at least the release that is in use")
    known = sorted(manifests, key=lambda item: item.pack.age)
    kept = {*keep, *filter(None, [current]), *(item.release_id for item in known[-1:])}
    going = [item for item in known if item.release_id not in kept]
    gone = {item.release_id for item in going}
    before, after = expected(known), expected(item for item in known if item.release_id in kept)
    return Pruning(
        releases=[item.release_id for item in going],
        files=sorted({path for item in going for path in item.files} - set(after)),
        packs=sorted(name for name in transfers if release_of_transfer(name) in gone),
        restore=sorted({owner for path, (owner, info) in after.items() if before.get(path, ("", None))[1] != info}),
    )


def modified(wanted: int, size: int, there: tuple[int, int] | None) -> int:
    """Return the time a file gets. Nginx makes ETags of time and size: new content must not share both with the old."""
    if there == (wanted, size):
        return wanted + 1
    return wanted


def to_json(manifest: Manifest) -> dict[str, Any]:
    pack = manifest.pack
    return {
        "version": MANIFEST_VERSION,
        "release_id": pack.release_id,
        "pack": {"file": pack.file, "size": pack.size, "mtime_ns": pack.mtime_ns, "sha256": pack.sha256},
        "files": {path: {"size": info.size, "sha256": info.sha256} for path, info in sorted(manifest.files.items())},
    }


def from_json(data: Mapping[str, Any]) -> Manifest:
    if data.get("version") != MANIFEST_VERSION:
        raise ValueError(f"version {data.get('version')!r} is unknown, wanted {MANIFEST_VERSION}")
    pack = data["pack"]
    return Manifest(
        Pack(str(data["release_id"]), str(pack["file"]), int(pack["size"]), int(pack["mtime_ns"]), str(pack["sha256"])),
        {str(path): Info(int(info["size"]), str(info["sha256"])) for path, info in data["files"].items()},
    )
