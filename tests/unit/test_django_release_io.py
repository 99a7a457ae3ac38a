# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives, indexes and directories of releases, on real files."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _django_release_io as files
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import Host, static_mtime

HOST = Host(python="3.13", python_full="3.13.5", arch="x86_64", debian="13")
NAMES = [f"v{number}-0123456789ab" for number in range(4)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four complete releases, v3 the newest, and the leftovers of an interruption."""
    for name in NAMES:
        directory = tmp_path / "releases" / name
        (directory / "venv/bin").mkdir(parents=True)
        (directory / "venv/bin/python").touch()
        files.write_json(directory / "release.json", {"id": name})
        time.sleep(0.02)
    (tmp_path / "releases/v9-0123456789ab/source").mkdir(parents=True)
    (tmp_path / "releases/.tmp-v9-0123456789ab.tar.gz").touch()
    return tmp_path


def names_in(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "releases").iterdir())


@pytest.mark.parametrize(
    ("keep", "links", "wanted", "left"),
    [
        (2, {}, "v3", ["v2", "v3"]),
        (2, {"current": "v0"}, "v3", ["v0", "v2", "v3"]),
        (1, {"current": "v2", "previous": "v1"}, "v3", ["v1", "v2", "v3"]),
        (1, {}, "v0", ["v0", "v3"]),
        (5, {}, "v3", ["v0", "v1", "v2", "v3"]),
        # running although its mark is gone: never removed
        (5, {"current": "v9"}, "v3", ["v0", "v1", "v2", "v3", "v9"]),
    ],
)
def test_old_and_unfinished_releases_go(
    home: Path, keep: int, links: dict[str, str], wanted: str, left: list[str]
) -> None:
    for link, target in links.items():
        (home / link).symlink_to(f"releases/{target}-0123456789ab")
    installer = files.Installer(home, HOST, "app1")
    before = names_in(home)
    foreseen = installer.prune(keep, f"{wanted}-0123456789ab", pretend=True)
    assert names_in(home) == before
    assert installer.prune(keep, f"{wanted}-0123456789ab", pretend=False) == foreseen
    assert names_in(home) == [f"{name}-0123456789ab" for name in left]
    assert installer.prune(keep, f"{wanted}-0123456789ab", pretend=False) == []


def test_a_release_is_installed_only_with_its_mark_and_its_python(home: Path) -> None:
    installer = files.Installer(home, HOST, "app1")
    assert installer.installed(NAMES[0]) == {"id": NAMES[0]}
    (home / "releases" / NAMES[0] / "venv/bin/python").unlink()
    (home / "releases" / NAMES[1] / "release.json").write_text("{")
    (home / "releases" / NAMES[2] / "release.json").unlink()
    files.write_json(home / "releases" / NAMES[3] / "release.json", {"id": NAMES[0]})
    assert [installer.installed(name) for name in NAMES] == [{}] * 4


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    index: dict[str, dict[str, object]] = {}
    for kind, file in (("release", f"{NAMES[0]}.tar.gz"), ("static", f"{NAMES[0]}-static.tar.gz")):
        path = tmp_path / file
        index[kind] = {"file": file, **files.write_pack(path, [])}
        index[kind]["mtime_ns"] = path.stat().st_mtime_ns
    files.write_json(tmp_path / f"{NAMES[0]}.json", {"id": NAMES[0], "packs": index})
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "sound"),
    [
        ("nothing", True),
        ("touched", True),
        ("changed", False),
        ("longer", False),
        ("gone", False),
        ("no static", False),
        ("broken index", False),
    ],
)
def test_a_pack_counts_only_as_it_was_written(packs: Path, damage: str, sound: bool) -> None:
    path = packs / f"{NAMES[0]}.tar.gz"
    if damage == "touched":
        os.utime(path, (1, 1))
    elif damage == "changed":
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "longer":
        written = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(written, written))
    elif damage == "gone":
        path.unlink()
    elif damage == "no static":
        (packs / f"{NAMES[0]}-static.tar.gz").unlink()
    elif damage == "broken index":
        (packs / f"{NAMES[0]}.json").write_text("{")
    assert bool(files.load_pack(packs, NAMES[0])) is sound
    assert files.list_packs(packs) == [NAMES[0]]


def test_packing_and_unpacking(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/run").write_text("x")
    (tree / "sub/run").chmod(0o700)
    (tree / "plain").write_text("y")
    (tree / "inside").symlink_to("sub/run")
    (tree / "outside").symlink_to("../../secret")
    (tree / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(tree / "pipe")
    packed = [files.write_pack(tmp_path / f"{number}.tar.gz", files.tree_entries(tree, "s/")) for number in (1, 2)]
    assert packed[0] == packed[1]
    target = tmp_path / "target"
    target.mkdir()
    files.unpack(tmp_path / "1.tar.gz", target)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*")) == [
        "s",
        "s/inside",
        "s/plain",
        "s/sub",
        "s/sub/run",
    ]
    assert oct((target / "s/sub/run").stat().st_mode)[-3:] == "755"
    assert oct((target / "s/plain").stat().st_mode)[-3:] == "644"
    assert (target / "s/inside").read_text() == "x"

    # Behind it another archive: from entries, or taken over from a file that has it.
    other = tmp_path / "other"
    other.mkdir()
    (other / "z").write_text("z")
    two, three = tmp_path / "two", tmp_path / "three"
    first = files.write_pack(two, files.tree_entries(tree, "s/"), files.tree_entries(other, "o/"))
    size = packed[0]["size"]
    assert first["head"] == packed[0]
    given = files.Slice(two, size, first["end"])
    assert files.write_pack(three, files.tree_entries(tree, "s/"), given) == first
    assert two.read_bytes() == three.read_bytes()
    # What an upload asks for, the end, differs where anything before it does.
    files.write_pack(three, files.tree_entries(tree, "t/"), given)
    assert files.local_state(two)[1] != files.local_state(three)[1]
    with pytest.raises(files.ReleaseError, match="shorter"):
        files.write_pack(three, [], files.Slice(two, size, first["size"] + 1))
    for position, name in ((0, "s"), (size, "o")):
        place = tmp_path / f"part-{position}"
        place.mkdir()
        files.unpack(two, place, position=position)
        assert [path.name for path in place.iterdir()] == [name]


@pytest.mark.parametrize("case", ["parent", "absolute", "through a link", "device"])
def test_an_archive_that_leads_out_is_refused(tmp_path: Path, case: str) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        names = {"parent": "a/../../x", "absolute": "/tmp/flotilla-x", "through a link": "link/x", "device": "null"}
        if case == "through a link":
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            archive.addfile(link)
        member = tarfile.TarInfo(names[case])
        if case == "device":
            member.type = tarfile.CHRTYPE
        archive.addfile(member)
    target = tmp_path / "in/target"
    target.mkdir(parents=True)
    with pytest.raises(files.ReleaseError):
        files.unpack(tmp_path / "evil.tar.gz", target)
    assert not list(tmp_path.rglob("x"))


def test_static_files_have_the_time_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a")
    (tmp_path / "a.css.gz").write_text("other")
    (tmp_path / "b.gz").write_text("alone")
    found = {entry.name: entry.mtime for entry in files.static_entries(tmp_path)}
    own = static_mtime(files.sha256_file(tmp_path / "a.css"))
    assert found["static/a.css"] == found["static/a.css.gz"] == own
    assert found["static/b.gz"] == static_mtime(files.sha256_file(tmp_path / "b.gz"))


def test_a_failing_command_shows_its_last_words_and_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(files.ReleaseError, match=r"(?s)the step failed with code 3:\nlast words\ndo that"):
        files.run(["/bin/sh", "-c", "echo last words >&2; exit 3"], what="the step", hint="do that")
    output = files.run(["/bin/sh", "-c", "env; (sleep 0.5; touch late) >/dev/null 2>&1 &"], what="x", cwd=tmp_path)
    assert "PATH=/usr/local/sbin" in output
    assert "PYTHONPATH" not in output
    time.sleep(0.8)
    assert not (tmp_path / "late").exists()
    with pytest.raises(files.ReleaseError, match="did not finish within"):
        files.run(["/bin/sleep", "5"], what="x", timeout=0.2)


def test_compiled_files_are_moved_beside_their_sources(tmp_path: Path) -> None:
    for name in ("new/lib/a/__pycache__/x.pyc", "new/lib/gone/__pycache__/x.pyc", "venv/lib/a/x.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    files.place_compiled(tmp_path / "new", tmp_path / "venv")
    assert (tmp_path / "venv/lib/a/__pycache__/x.pyc").exists()
    assert not (tmp_path / "venv/lib/gone").exists()
