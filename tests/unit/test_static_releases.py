# SPDX-License-Identifier: GPL-3.0-or-later
"""The module static_releases on real directories, with real packs."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.flotilla.django.plugins.modules import static_releases


class Server:
    """A static server's directory and runs of the module on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("files", "releases", "manifests"):
            (root / name).mkdir(parents=True)

    def pack(self, release: str, files: dict[str, str], age: int, mtime: int = 1_000_000_000) -> dict[str, str]:
        """A pack as the build makes it; `age` is when it came."""
        members = []
        for path, content in files.items():
            info = tarfile.TarInfo(f"static/{path}")
            info.mtime, info.size = mtime, len(content.encode())
            members.append((info, content.encode()))
        return self.raw(release, members, age)

    def raw(self, release: str, members: list[tuple[tarfile.TarInfo, bytes]], age: int = 1) -> dict[str, str]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for info, content in members:
                archive.addfile(info, io.BytesIO(content))
        path = self.root / "releases" / f"{release}-static.tar.gz"
        path.write_bytes(buffer.getvalue())
        os.utime(path, (age, age))
        return {"release_id": release, "file": path.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}

    def run(self, check: bool = False, **params: Any) -> dict[str, Any]:
        arguments = {"root": str(self.root), "_ansible_check_mode": check, "_ansible_diff": True, **params}
        printed = io.StringIO()
        with patch_module_args(arguments), contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            static_releases.main()
        return dict(json.loads(printed.getvalue()))

    def ok(self, check: bool = False, **params: Any) -> dict[str, Any]:
        result = self.run(check, **params)
        assert not result.get("failed"), result
        return result

    def tree(self) -> dict[str, str]:
        top = self.root / "files"
        return {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}

    def state(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in self.root.rglob("*"):
            status = path.lstat()
            found[str(path.relative_to(self.root))] = (status.st_ino, status.st_mtime_ns, status.st_mode)
        return found


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "one")


def test_publishes_and_then_changes_nothing(server: Server) -> None:
    server.pack("r1", {"a.css": "a", "img/b.svg": "b"}, 1)
    before = server.state()
    predicted = server.ok(check=True)
    assert server.state() == before
    done = server.ok()
    assert {**predicted, "invocation": 0} == {**done, "invocation": 0}
    assert done["changed"]
    assert (done["published"], done["releases"], done["added"]) == (["r1"], ["r1"], 2)
    assert done["diff"]["prepared"] == "+ a.css\n+ img/b.svg\n"
    assert server.tree() == {"a.css": "a", "img/b.svg": "b"}
    assert (server.root / "health").read_text() == "ok\n"
    assert (server.root / "files/img/b.svg").stat().st_mode & 0o777 == 0o644
    assert (server.root / "files/img").stat().st_mode & 0o777 == 0o755
    assert int((server.root / "files/a.css").stat().st_mtime) == 1_000_000_000
    after = server.state()
    assert not server.ok()["changed"]
    assert server.state() == after
    assert not list(server.root.glob(".publish-*"))


def test_second_release_adds_and_keeps_equal_files_untouched(server: Server) -> None:
    server.pack("r1", {"a.1.css": "a", "same.js": "s", "robots.txt": "one"}, 1)
    server.ok()
    inode = (server.root / "files/same.js").stat().st_ino
    server.pack("r2", {"a.2.css": "b", "same.js": "s", "robots.txt": "two!"}, 2)
    done = server.ok()
    assert server.tree() == {"a.1.css": "a", "a.2.css": "b", "same.js": "s", "robots.txt": "two!"}
    assert (server.root / "files/same.js").stat().st_ino == inode
    assert done["diff"]["prepared"] == "+ a.2.css\n~ robots.txt\n"


def test_a_reader_of_the_old_file_reads_it_to_its_end(server: Server) -> None:
    server.pack("r1", {"x.txt": "old content"}, 1)
    server.ok()
    with (server.root / "files/x.txt").open() as reader:
        server.pack("r2", {"x.txt": "new"}, 2)
        server.ok()
        assert reader.read() == "old content"


def test_the_order_of_arrival_makes_no_difference(tmp_path: Path) -> None:
    one, two = Server(tmp_path / "one"), Server(tmp_path / "two")
    packs = [("r1", {"x": "1", "x.br": "c1", "only1": "1"}, 1), ("r2", {"x": "22", "only2": "2"}, 2)]
    for server, order in ((one, packs), (two, packs[::-1])):
        for item in order:
            server.pack(*item)
            server.ok()
        assert not server.ok()["changed"]
    assert one.tree() == two.tree() == {"x": "22", "only1": "1", "only2": "2"}


def test_same_size_and_time_but_other_content_gets_another_etag(server: Server) -> None:
    server.pack("r1", {"x.txt": "aaa"}, 1, mtime=0)
    server.ok()
    server.pack("r2", {"x.txt": "bbb"}, 2, mtime=0)
    server.ok()
    assert server.tree() == {"x.txt": "bbb"}
    assert int((server.root / "files/x.txt").stat().st_mtime) == 1


def test_prune_keeps_what_a_kept_release_needs(server: Server) -> None:
    server.pack("r1", {"deep/er/one": "1", "shared": "s"}, 1)
    server.pack("r2", {"two": "2", "shared": "s"}, 2)
    server.pack("r3", {"three": "3"}, 3)
    (server.root / "releases/r1.tar.gz").write_bytes(b"")
    server.ok()
    predicted = server.ok(check=True, keep=["r2"], current="r2")
    done = server.ok(keep=["r2"], current="r2")
    assert {**predicted, "invocation": 0} == {**done, "invocation": 0}
    assert (done["pruned"], done["removed"], done["releases"]) == (["r1"], 1, ["r2", "r3"])
    assert server.tree() == {"two": "2", "shared": "s", "three": "3"}
    assert not (server.root / "files/deep").exists()
    assert sorted(path.name for path in (server.root / "releases").iterdir()) == [
        "r2-static.tar.gz",
        "r3-static.tar.gz",
    ]
    assert not server.ok(keep=["r2"], current="r2")["changed"]


def test_prune_brings_back_what_the_removed_release_had_replaced(server: Server) -> None:
    server.pack("r1", {"x": "1", "x.gz": "z"}, 1)
    server.pack("r2", {"x": "2"}, 2)
    server.pack("r3", {"y": "3"}, 3)
    server.ok()
    assert server.tree() == {"x": "2", "y": "3"}
    server.ok(keep=["r1", "r3"], current="r3")
    assert server.tree() == {"x": "1", "x.gz": "z", "y": "3"}
    assert not server.ok(keep=["r1", "r3"], current="r3")["changed"]


def test_restores_what_is_gone_or_damaged(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.pack("r1", {"a": "a", "b": "bb"}, 1)
    server.ok()
    (server.root / "files/a").unlink()
    (server.root / "files/b").write_text("")
    assert server.ok()["published"] == ["r1"]
    assert server.tree() == {"a": "a", "b": "bb"}
    (server.root / "files/a").unlink()
    (server.root / "releases/r1-static.tar.gz").unlink()
    done = server.ok()
    assert not done["changed"]
    assert "files of r1 are gone" in capsys.readouterr().err


def test_a_pack_that_was_touched_is_not_unpacked_again_and_another_one_is(server: Server) -> None:
    server.pack("r1", {"a": "a", "b": "b"}, 1)
    server.ok()
    server.pack("r1", {"a": "a", "b": "b"}, 5)
    os.utime(server.root / "releases/r1-static.tar.gz", (9, 9))
    server.pack("r1", {"a": "a", "c": "c"}, 7)
    assert server.ok()["diff"]["prepared"] == "+ c\n"
    server.pack("r2", {"z": "z"}, 8)
    server.ok()
    server.ok(keep=["r2"])
    assert server.tree() == {"z": "z"}


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info, b"x" if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    "bad",
    [
        member("static/../../evil"),
        member("/etc/evil"),
        member("evil"),
        member("static/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("static/hard", tarfile.LNKTYPE, "static/good"),
        member("static/device", tarfile.CHRTYPE),
        member("static/fifo", tarfile.FIFOTYPE),
        member("static/good/below-a-file"),
    ],
    ids=lambda value: value[0].name,
)
def test_unsafe_packs_are_refused_before_anything_is_written(
    server: Server, bad: tuple[tarfile.TarInfo, bytes]
) -> None:
    server.raw("r1", [member("static/good"), bad])
    before = server.state()
    result = server.run()
    assert result["failed"]
    assert "r1-static.tar.gz" in result["msg"]
    assert server.state() == before


def test_a_truncated_pack_is_refused(server: Server) -> None:
    server.pack("r1", {"a": "a" * 4000, "b": os.urandom(4000).hex()}, 1)
    path = server.root / "releases/r1-static.tar.gz"
    path.write_bytes(path.read_bytes()[:-500])
    before = server.state()
    assert "nothing of it was published" in server.run()["msg"]
    assert server.state() == before
    path.write_bytes(gzip.compress(b""))
    assert "empty file" in server.run()["msg"]


def test_a_damaged_checksum_is_noticed(server: Server) -> None:
    server.pack("r1", {"a": "a"}, 1)
    path = server.root / "releases/r1-static.tar.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    assert "CRC check failed" in server.run()["msg"]
    assert server.tree() == {}


def test_packs_are_verified(server: Server) -> None:
    good = server.pack("r1", {"a": "a"}, 1)
    wrong = {**good, "sha256": "0" * 64}
    assert "wanted 0000" in server.run(packs=[wrong])["msg"]
    missing = {"release_id": "r2", "file": "r2-static.tar.gz"}
    assert "r2-static.tar.gz is not in" in server.run(packs=[good, missing])["msg"]
    assert server.tree() == {}
    assert server.ok(packs=[good])["changed"]
    assert not server.ok(packs=[good])["changed"]
    assert server.run(packs=[wrong])["failed"]


def test_file_in_one_release_and_directory_in_another(server: Server) -> None:
    server.pack("r1", {"x/y": "1"}, 1)
    server.ok()
    server.pack("r2", {"x": "2"}, 2)
    assert "x is a file in this release and a directory" in server.run()["msg"]
    server.pack("r2", {"x/y/z": "2"}, 2)
    assert "a directory of x/y/z is a file" in server.run()["msg"]
    assert server.tree() == {"x/y": "1"}


def test_before_the_role_has_run(tmp_path: Path) -> None:
    server = Server(tmp_path / "one")
    empty = str(tmp_path / "nowhere")
    assert "run the role nginx_static first" in server.run(root=empty)["msg"]
    assert not server.ok(check=True, root=empty)["changed"]


def test_nothing_is_healthy_before_the_first_release(server: Server) -> None:
    assert not server.ok()["changed"]
    assert not (server.root / "health").exists()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """Another static server: its packs over HTTP as Nginx lists and sends them."""
    other = Server(tmp_path / "peer")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/releases/")
            paths = sorted((other.root / "releases").iterdir())
            if name:
                body = (other.root / "releases" / name).read_bytes()
            else:
                listing = [
                    {
                        "name": path.name,
                        "type": "file",
                        "mtime": formatdate(path.stat().st_mtime, usegmt=True),
                        "size": path.stat().st_size,
                    }
                    for path in paths
                ]
                body = json.dumps(listing).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield other, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_replaced_server_fetches_what_its_peer_has(server: Server, peer: tuple[Server, str]) -> None:
    other, url = peer
    # Their age decides, not the order in which they are listed.
    other.pack("r1", {"x": "22"}, 2)
    other.pack("r2", {"x": "1", "one": "1"}, 1)
    (other.root / "releases/r1.tar.gz").write_bytes(b"wheels")
    (other.root / "releases/passwd").write_bytes(b"not a pack")
    assert server.ok(check=True, peers=[url])["fetched"] == ["r1-static.tar.gz", "r1.tar.gz", "r2-static.tar.gz"]
    assert list((server.root / "releases").iterdir()) == []
    assert server.ok(peers=[url])["published"] == ["r2", "r1"]
    other.ok()
    assert server.tree() == other.tree() == {"x": "22", "one": "1"}
    assert (server.root / "releases/r1.tar.gz").read_bytes() == b"wheels"
    assert not (server.root / "releases/passwd").exists()
    assert not server.ok(peers=[url])["changed"]


def test_pruned_releases_are_not_fetched_again(server: Server, peer: tuple[Server, str]) -> None:
    other, url = peer
    other.pack("r1", {"one": "1"}, 1)
    other.pack("r2", {"two": "2"}, 2)
    assert server.ok(peers=[url], keep=["r2"])["fetched"] == ["r2-static.tar.gz"]


def test_a_silent_peer_is_a_warning(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.pack("r1", {"a": "a"}, 1)
    done = server.ok(peers=["http://127.0.0.1:1"])
    assert done["published"] == ["r1"]
    assert "http://127.0.0.1:1" in capsys.readouterr().err


def test_damaged_manifest_is_named(server: Server) -> None:
    (server.root / "manifests/r1.json").write_text("{")
    assert "manifests/r1.json is damaged" in server.run()["msg"]


class Files(BaseHTTPRequestHandler):
    """Serves the tree as Nginx does, but for one path."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]
    missing = ""

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        path = self.root / "files" / unquote(self.path.removeprefix("/static/"))
        there = path.is_file() and self.path != self.missing
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(path.stat().st_size if there else 0))
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def web(server: Server) -> Iterator[tuple[str, type[Files]]]:
    handler = type("Handler", (Files,), {"root": server.root, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/static/", handler
        httpd.shutdown()


def test_what_was_published_is_asked_for(server: Server, web: tuple[str, type[Files]]) -> None:
    url, handler = web
    server.pack("r1", {"old.css": "old"}, age=1)
    server.ok()
    server.pack("r2", {"a b.css": "one", "a b.css.gz": "zip", ".hidden": "x", "app.js": "two"}, age=2)
    result = server.ok(prove=url)
    assert result["proven"] == ["r2"]
    assert handler.asked == ["/static/a%20b.css", "/static/app.js"]
    assert server.ok(check=True, prove=url)["proven"] == []
    handler.missing = "/static/app.js"
    failed = server.run(prove=url)
    assert failed["failed"]
    assert "does not serve 1 of 4 files of r2: app.js: 404, 0, wanted 200, 3" in failed["msg"]


def test_a_web_server_that_is_down_is_told(server: Server) -> None:
    server.pack("r1", {"app.js": "one"}, age=1)
    failed = server.run(prove="http://127.0.0.1:9/static/")
    assert failed["failed"] and "http://127.0.0.1:9/static/ does not answer" in failed["msg"]
