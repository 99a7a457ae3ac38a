# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator against a small real site that misbehaves in each way it must notice."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

LOAD = Path(__file__).resolve().parents[1] / "load" / "load.py"
SPEC = importlib.util.spec_from_file_location("flotilla_load", LOAD)
assert SPEC and SPEC.loader
load = importlib.util.module_from_spec(SPEC)
sys.modules["flotilla_load"] = load
SPEC.loader.exec_module(load)


class Site:
    """Looks like the example site. `fault` says what to do instead with each `faulty` request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.fault = ""
        self.faulty = "GET /plain/"
        self.healthy = 0  # so many of these requests are answered right first
        self.tokens: list[str] = []
        self.counters: dict[str, int] = {}
        self.requests: list[tuple[int, str]] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *rest = head.strip().split("\r\n")
                method, target, _version = first.split(" ")
                headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in rest)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((number, f"{method} {target}"))
                if self.is_due(f"{method} {urlsplit(target).path}") and not await self.misbehave(writer, body.decode()):
                    break
                writer.write(self.answer(method, target, headers, body.decode()))
                await writer.drain()
                if headers.get("connection") == "close" or self.fault == "closes idle connections":
                    break
        writer.close()

    def is_due(self, request: str) -> bool:
        if not self.fault or request != self.faulty:
            return False
        self.healthy -= 1
        return self.healthy < 0

    async def misbehave(self, writer: asyncio.StreamWriter, body: str) -> bool:
        """True when the request is to be answered as usual after all."""
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
        raw = {
            "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "early close": b"",
            "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
            "half a body": whole[:-4],
            "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
            "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "not HTTP": b"220 mail.example ESMTP\r\n\r\n",
        }
        if self.fault in raw:
            writer.write(raw[self.fault])
            await writer.drain()
            return False
        if self.fault in ("reset", "reset inside the body"):
            if self.fault != "reset":
                writer.write(whole[:-4])
                await writer.drain()
                await asyncio.sleep(0.05)
            raw_socket = writer.get_extra_info("socket")
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if self.fault == "hang":
            await asyncio.sleep(3)
            return False
        if self.fault == "lost entries":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /guestbook/\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return False
        if self.fault in ("sent twice", "written twice", "written without a word"):
            self.tokens.append(parse_qs(body)["token"][0])
        if self.fault == "lost sessions":
            self.counters.clear()
            self.fault = ""
        if self.fault == "old sessions":
            self.counters = dict.fromkeys(self.counters, 2)
            self.fault = ""
        return self.fault != "written without a word"

    def answer(self, method: str, target: str, headers: dict[str, str], body: str) -> bytes:
        path = urlsplit(target).path
        cookies = dict(part.split("=", 1) for part in headers.get("cookie", "").split("; ") if part)
        more, status, text = [], "200 OK", "hello"
        if path == "/":
            text = '<link href="/static/site.1a2b.css"><img src="/static/sea.3c4d.jpg">'
        elif path == "/guestbook/" and method == "GET":
            more.append("Set-Cookie: csrftoken=abc; Path=/")
        elif path == "/guestbook/":
            form = {name: values[0] for name, values in parse_qs(body).items()}
            if form.get("csrfmiddlewaretoken") != "abc" or cookies.get("csrftoken") != "abc":
                status = "403 Forbidden"
            elif form["token"] in self.tokens and self.fault != "written twice":
                status = "409 Conflict"
            else:
                self.tokens.append(form["token"])
                status = "302 Found"
        elif path == "/guestbook/tokens/":
            prefix = parse_qs(urlsplit(target).query)["prefix"][0]
            text = json.dumps({"tokens": [token for token in self.tokens if token.startswith(prefix)]})
        elif path == "/accounts/login/" and method == "POST":
            more.append(f"Set-Cookie: sessionid=session{len(self.counters)}; HttpOnly")
            self.counters[f"session{len(self.counters)}"] = 0
            status = "302 Found"
        elif path == "/accounts/login/":
            more.append("Set-Cookie: csrftoken=abc")
        elif path == "/where/":
            session = cookies.get("sessionid", "")
            user = "keeper" if session.startswith("session") and session in self.counters else None
            if session not in self.counters:
                session = f"anonymous{len(self.requests)}"
                more.append(f"Set-Cookie: sessionid={session}")
            self.counters[session] = self.counters.get(session, 0) + 1
            text = json.dumps({"user": user, "counter": self.counters[session]})
        elif path not in ("/plain/", "/static/site.1a2b.css", "/static/sea.3c4d.jpg"):
            status = "404 Not Found"
        if path == "/plain/":  # in chunks
            lines = [
                f"HTTP/1.1 {status}",
                "X-Served-By: app1",
                "Transfer-Encoding: chunked",
                "",
                "5",
                text,
                "0",
                "",
                "",
            ]
        else:
            lines = [f"HTTP/1.1 {status}", *more, f"Content-Length: {len(text)}", "", text]
        return "\r\n".join(lines).encode()


@contextlib.contextmanager
def served(site: Site) -> Iterator[Site]:
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=site.tls)
        site.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(5)
    try:
        yield site
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with served(Site()) as running:
        yield running


def send(site: Site, kind: str = "plain", **more: Any) -> dict[str, Any]:
    settings = {"rate": 40, "seconds": 0.25, "deadline": 0.5, "mix": {kind: 1}, "address": "127.0.0.1"} | more
    report: dict[str, Any] = load.run(load.Load(url=f"http://flotilla.test:{site.port}", **settings))
    return report


def test_a_site_in_order(site: Site) -> None:
    mix = {"plain": 1, "page": 1, "session": 1, "post": 1, "static": 1}
    report = send(site, mix=mix, rate=200, seconds=1, deadline=5)
    assert report["failures"] == []
    assert (report["sent"], report["ok"], report["failed"]) == (200, 200, 0)
    assert set(report["kinds"]) == set(mix)
    assert (
        report["posts"]["accepted"] == report["posts"]["found"] == report["kinds"]["post"]["sent"] == len(site.tokens)
    )
    assert report["served_by"]["app1"] == report["kinds"]["plain"]["ok"]
    assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"] < 1000
    assert sum(second["sent"] for second in report["per_second"]) == 200
    # New connections and used ones, and none of the requests sent twice.
    opened, again = report["connections"]["opened"], report["connections"]["used_again"]
    assert opened == site.connections
    assert opened + again == len(site.requests)
    assert again > 50
    assert opened > 80


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "status 5xx"),
        ("404", "unexpected status"),
        ("early close", "early close"),
        ("half a head", "truncated"),
        ("half a body", "truncated"),
        ("half a chunk", "truncated"),
        ("no last chunk", "truncated"),
        ("not HTTP", "protocol"),
        ("reset", "reset"),
        ("reset inside the body", "reset"),
        ("hang", "time-out"),
    ],
)
@pytest.mark.parametrize("keepalive", [0.0, 1.0])
def test_each_failure_is_seen_once_and_by_its_name(site: Site, fault: str, reason: str, keepalive: float) -> None:
    site.fault = fault
    report = send(site, keepalive=keepalive)
    assert report["reasons"] == {reason: 10}
    assert (report["sent"], report["failed"]) == (10, 10)
    assert len(report["failures"]) == 10
    assert len(site.requests) == 10, "nothing is tried again"
    first = report["failures"][0]
    assert first["reason"] == reason
    assert abs(first["at"] - report["started"] - first["due"]) < 0.01
    if fault == "hang":
        assert 490 < first["milliseconds"] < 900


def test_refused(site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        site.port = unused.getsockname()[1]
        assert send(site)["reasons"] == {"refused": 10}


def test_a_connection_that_the_site_closed_while_idle_is_no_failure(site: Site) -> None:
    site.fault, site.faulty = "closes idle connections", "none"
    report = send(site, keepalive=1.0, rate=20, seconds=0.5)
    assert (report["sent"], report["failed"]) == (10, 0)


def test_a_connection_that_was_idle_for_long_is_not_used_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST_IDLE", 0.2)
    seldom = send(site, keepalive=1.0, rate=2, seconds=1.5)
    assert (seldom["sent"], seldom["failed"], seldom["connections"]["used_again"]) == (3, 0, 0)
    often = send(site, keepalive=1.0, rate=20, seconds=0.5)
    assert (often["failed"], often["connections"]["used_again"]) == (0, 9)


@pytest.mark.parametrize(
    ("fault", "reasons", "found"),
    [
        ("lost entries", {"lost POST": 10}, 0),
        ("sent twice", {"doubled POST": 10}, 10),
        ("written twice", {"doubled POST": 10}, 10),
        ("written without a word", {"early close": 10}, 10),
    ],
)
def test_entries(site: Site, fault: str, reasons: dict[str, int], found: int) -> None:
    site.fault, site.faulty = fault, "POST /guestbook/"
    report = send(site, "post")
    assert report["reasons"] == reasons
    assert report["posts"]["found"] == found
    assert report["posts"]["unacknowledged"] == (found if fault in ("sent twice", "written without a word") else 0)


def test_entries_that_cannot_be_counted_are_a_failure(site: Site) -> None:
    site.fault, site.faulty = "503", "GET /guestbook/tokens/"
    report = send(site, "post")
    assert report["reasons"] == {"not counted": 1}
    assert report["posts"] == {"asked": 10, "accepted": 10, "found": None}


@pytest.mark.parametrize(("user", "reason"), [("", "lost session"), ("keeper", "lost login")])
def test_lost_sessions(site: Site, user: str, reason: str) -> None:
    site.fault, site.faulty, site.healthy = "lost sessions", "GET /where/", 5
    report = send(site, "session", sessions=1, user=user, rate=20, seconds=0.5)
    # The first visit is part of the preparation, and a visit after the loss begins a new session.
    assert set(report["reasons"]) == {reason}
    assert report["failures"][0]["due"] == 0.2
    assert report["kinds"]["session"]["failed"] >= 1


def test_a_session_whose_count_does_not_go_up(site: Site) -> None:
    site.fault, site.faulty, site.healthy = "old sessions", "GET /where/", 5
    report = send(site, "session", sessions=1, rate=20, seconds=0.5)
    assert report["reasons"] == {"lost session": 1}
    assert "counter was 5 and is 3" in report["failures"][0]["detail"]


def test_a_load_in_the_background(site: Site) -> None:
    settings = {"url": f"http://flotilla.test:{site.port}", "address": "127.0.0.1", "mix": {"plain": 1}}
    with load.running(load.Load(rate=50, seconds=60, **settings)) as running:
        while len(site.requests) < 10:
            threading.Event().wait(0.02)
        site.fault = "503"
        while len(site.requests) < 20:
            threading.Event().wait(0.02)
    assert running.report["seconds"] < 10, "leaving the block stops it"
    assert set(running.report["reasons"]) == {"status 5xx"}
    assert running.report["failed"] == pytest.approx(10, abs=3)
    assert running.report["ok"] == pytest.approx(10, abs=3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=flotilla.test", "-addext", "subjectAltName=DNS:flotilla.test"]
    subprocess.run([*command, "-keyout", where / "key.pem", "-out", where / "ca.pem"], check=True, capture_output=True)
    return where


def test_tls_with_a_given_certificate_and_address(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
    with served(Site(context)) as site:
        settings = {"address": "127.0.0.1", "mix": {"plain": 1, "post": 1}, "rate": 40, "seconds": 0.5}
        url = f"https://flotilla.test:{site.port}"
        report = load.run(load.Load(url=url, ca=str(certificate / "ca.pem"), **settings))
        assert (report["sent"], report["failed"]) == (20, 0)
        site.fault = "half a body"
        report = load.run(load.Load(url=url, ca=str(certificate / "ca.pem"), **settings))
        assert report["reasons"] == {"truncated": report["kinds"]["plain"]["sent"]}
        site.fault = ""
        settings["mix"] = {"plain": 1}
        assert load.run(load.Load(url=url, **settings))["reasons"] == {"tls": 20}, "not trusted"
        wrong = f"https://other.test:{site.port}"
        report = load.run(load.Load(url=wrong, ca=str(certificate / "ca.pem"), **settings))
        assert report["reasons"] == {"tls": 20}, "another name"


def test_the_generator_does_not_wait_for_answers(site: Site) -> None:
    site.fault = "hang"
    report = send(site, rate=100, seconds=1, deadline=1)
    assert report["sent"] == 100
    assert report["seconds"] < 2.3


def test_too_many_in_flight_are_counted_as_failed(site: Site) -> None:
    site.fault = "hang"
    report = send(site, rate=40, seconds=0.5, deadline=1, most_in_flight=5)
    assert report["reasons"] == {"time-out": 5, "not sent": 15}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"seconds": 10**6}, "seconds is 1000000"),
        ({"rate": 5000, "seconds": 3000}, "more than 1000000 requests"),
        ({"keepalive": 2}, "keepalive is 2"),
        ({"mix": {"nonsense": 1}}, "mix is"),
        ({"url": "ftp://flotilla.test"}, "url is"),
    ],
)
def test_bad_input(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load.Load(**({"url": "http://flotilla.test"} | wrong))


def test_the_command(site: Site, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    command = [sys.executable, str(LOAD), "--url", f"http://flotilla.test:{site.port}", "--address", "127.0.0.1"]
    command += ["--rate", "20", "--seconds", "0.5", "--mix", "plain=1,post=1", "--output", str(output)]
    assert subprocess.run(command, check=False).returncode == 0
    assert json.loads(output.read_text(encoding="utf-8"))["ok"] == 10
    site.fault = "503"
    done = subprocess.run(command[:-2], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert set(json.loads(done.stdout)["reasons"]) == {"status 5xx"}
    site.faulty = "GET /guestbook/"
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "GET /guestbook/ answered 503, wanted 200" in done.stderr
    assert subprocess.run([*command, "--mix", "plain"], check=False, capture_output=True).returncode == 2


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [load.percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert load.percentile([7.0], 0.99) == 7.0
    assert load.percentile([], 0.5) == 0.0
