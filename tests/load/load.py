#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends a constant stream of requests to a cluster and says exactly which of them failed, when and how.

An open model: requests start at their times whether or not earlier ones were answered, as users do. Nothing is ever
tried again. Latency counts from the time at which a request was due, so a generator or a cluster that falls behind
shows. HTTP/1.1 over asyncio streams, written out here, because a library hides a reset, an early end and a short body
behind one exception or a retry.

    tests/load/load.py --url https://flotilla.test --address 192.0.2.10 --ca ca.pem --rate 50 --seconds 30

ends with 0 when nothing failed, 1 when something did, 2 when it could not begin, and prints a report in JSON.
As a library: `run(Load(...))`, or `with running(Load(...)) as load: break_something()` and then `load.report`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import ssl
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

MOST_REQUESTS = 1_000_000
MOST_SECONDS = 3600.0
MOST_BODY = 64 * 2**20
MOST_FAILURES_LISTED = 1000
# Seconds after which an idle connection is not used again. The balancer closes it after 15
# (haproxy_timeout_http_keep_alive), and a request that crosses that is lost without anybody's fault.
MOST_IDLE = 10.0
POSTS_IN_A_BATCH = 1000  # the site lists at most 10,000 tokens at a time
KINDS = ("plain", "page", "session", "post", "slow", "static")


class Failure(Exception):
    """A request failed. The reason is one of a few words, the detail is for the reader."""

    def __init__(self, reason: str, detail: str = "", status: int = 0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.status = reason, detail, status


@dataclass(frozen=True)
class Load:
    """What to send. The paths and forms are those of the example site."""

    url: str
    address: str = (
        ""  # connect to this IP address instead of asking the name server; "[::1]:8443" style port is in the URL
    )
    ca: str = ""  # file with the certificates to trust; the machine's own when empty
    rate: float = 20.0  # requests a second
    seconds: float = 10.0
    mix: dict[str, float] = field(default_factory=lambda: {"plain": 6, "page": 2, "session": 4, "post": 2, "static": 4})
    deadline: float = 10.0  # seconds from the due time to the last byte
    keepalive: float = 0.5  # share of the requests that use a connection again when one is idle
    most_in_flight: int = 1000
    sessions: int = 10
    user: str = ""  # without one the sessions are anonymous
    password: str = ""
    static: tuple[str, ...] = ()  # paths; those in the home page when empty
    slow_seconds: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = {
            "rate": 0 < self.rate <= 10_000,
            "seconds": 0 < self.seconds <= MOST_SECONDS,
            "deadline": 0 < self.deadline <= 600,
            "keepalive": 0 <= self.keepalive <= 1,
            "sessions": 0 < self.sessions <= 1000,
            "most_in_flight": 0 < self.most_in_flight <= 20_000,
            "mix": bool(self.mix)
            and set(self.mix) <= set(KINDS)
            and all(0 < share < math.inf for share in self.mix.values()),
            "url": urlsplit(self.url).scheme in ("http", "https") and bool(urlsplit(self.url).hostname),
        }
        if wrong := [name for name, right in wanted.items() if not right]:
            raise ValueError("; ".join(f"{name} is {getattr(self, name)!r}, which is out of range" for name in wrong))
        if self.rate * self.seconds > MOST_REQUESTS:
            raise ValueError(f"rate x seconds is more than {MOST_REQUESTS} requests")


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def cookies(self) -> dict[str, str]:
        pairs = (
            value.split(";", 1)[0].split("=", 1) for key, value in self.headers if key == "set-cookie" and "=" in value
        )
        return {name.strip(): value.strip() for name, value in pairs}


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0  # by time.monotonic()

    @property
    def usable(self) -> bool:
        young = time.monotonic() - self.idle_since < MOST_IDLE
        closed = self.reader.at_eof() or self.reader.exception() is not None or self.writer.is_closing()
        return young and not closed

    def close(self) -> None:
        self.writer.close()


@dataclass
class Visitor:
    """A browser: its cookies, and the last count of its session that it was told."""

    cookies: dict[str, str] = field(default_factory=dict)
    counter: int = 0
    users: int = 0
    unsure_until: float = 0.0  # two requests of one session at once: the site keeps one of the two counts


@dataclass
class Outcome:
    due: float  # seconds from the begin
    kind: str
    milliseconds: float
    reason: str = ""  # empty when it went well
    detail: str = ""
    status: int = 0
    reused: bool = False


def content_length(headers: Sequence[tuple[str, str]]) -> int | None:
    """The Content-Length, None without one."""
    for name, value in headers:
        if name == "content-length":
            if not value.isdigit():
                raise Failure("protocol", f"Content-Length {value[:20]!r}")
            return int(value)
    return None


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> tuple[Answer, bool]:
    """One answer, and whether the connection can be used again."""
    while True:
        head = await _head(reader)
        if not 100 <= head.status < 200:
            break
    headers = dict(reversed(head.headers))
    again = headers.get("connection", "").lower() != "close"
    if method == "HEAD" or head.status in (204, 304):
        return head, again
    length = content_length(head.headers)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        head.body = await _chunks(reader)
    elif length is not None:
        if length > MOST_BODY:
            raise Failure("protocol", f"a body of {length} bytes")
        head.body = await _exactly(reader, length)
    else:  # until the server closes: nobody can tell whether that is all of it
        head.body, again = await reader.read(MOST_BODY), False
        while more := await reader.read(MOST_BODY):
            head.body += more
    return head, again


async def _head(reader: asyncio.StreamReader) -> Answer:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise Failure("early close", "closed without an answer") from None
        raise Failure("truncated", f"closed inside the head after {len(error.partial)} bytes") from None
    except asyncio.LimitOverrunError:
        raise Failure("protocol", "the head is too long") from None
    first, *rest = raw.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
    if not match:
        raise Failure("protocol", f"not HTTP: {first[:40]!r}")
    pairs = (line.split(":", 1) for line in rest if ":" in line)
    return Answer(int(match[1]), [(name.strip().lower(), value.strip()) for name, value in pairs], b"")


async def _exactly(reader: asyncio.StreamReader, length: int) -> bytes:
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise Failure("truncated", f"{len(error.partial)} of {length} bytes of the body") from None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
        except asyncio.IncompleteReadError:
            raise Failure("truncated", "closed between two chunks") from None
        try:
            size = int(line.split(b";", 1)[0], 16)
        except ValueError:
            raise Failure("protocol", f"chunk size {line[:20]!r}") from None
        if len(body) + size > MOST_BODY:
            raise Failure("protocol", "the body is too long")
        body += (await _exactly(reader, size + 2))[:size] if size else b""
        if not size:
            while (await _exactly_line(reader)) != b"\r\n":
                pass
            return body


async def _exactly_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except asyncio.IncompleteReadError:
        raise Failure("truncated", "closed before the end of the last chunk") from None


def as_failure(error: BaseException) -> Failure:
    """What an exception of the network means."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, TimeoutError):
        return Failure("time-out")
    if isinstance(error, ConnectionRefusedError):
        return Failure("refused")
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return Failure("reset", str(error))
    if isinstance(error, ssl.SSLError):
        return Failure("tls", str(error))
    if isinstance(error, OSError):
        return Failure("unreachable", str(error))
    return Failure("client error", f"{type(error).__name__}: {error}")


class Client:
    """Requests to one site over connections that are new or used again. Never tries anything twice."""

    def __init__(self, load: Load) -> None:
        parts = urlsplit(load.url)
        self.host = parts.hostname or ""
        secure = parts.scheme == "https"
        self.port = parts.port or (443 if secure else 80)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.authority = parts.netloc
        self.address = load.address or self.host
        self.tls: ssl.SSLContext | None = None
        if secure:
            self.tls = ssl.create_default_context(cafile=load.ca or None)
            self.tls.set_alpn_protocols(["http/1.1"])
        self.idle: list[Connection] = []
        self.opened = 0
        self.used_again = 0

    async def open(self) -> Connection:
        name = self.host if self.tls else None
        reader, writer = await asyncio.open_connection(self.address, self.port, ssl=self.tls, server_hostname=name)
        self.opened += 1
        return Connection(reader, writer)

    def take_idle(self) -> Connection | None:
        """A connection that the server has not closed as far as this side knows."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                self.used_again += 1
                return connection
            connection.close()
        return None

    def close(self) -> None:
        for connection in self.idle:
            connection.close()
        self.idle.clear()

    async def request(
        self, method: str, path: str, cookies: dict[str, str], form: dict[str, str] | None = None,
        keep: bool = True, outcome: Outcome | None = None,
    ) -> Answer:  # fmt: skip
        connection = self.take_idle() if keep else None
        if outcome and connection:
            outcome.reused = True
        connection = connection or await self.open()
        body = urlencode(form).encode() if form is not None else b""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.authority}", "User-Agent: flotilla-load", "Accept: */*"]
        if not keep:
            lines.append("Connection: close")
        if cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in cookies.items()))
        if form is not None:
            lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
            lines += [f"Origin: {self.origin}", f"Referer: {self.origin}/"]
        again = False
        try:
            connection.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await connection.writer.drain()
            answer, again = await read_answer(connection.reader, method)
        finally:
            if again and keep:
                connection.idle_since = time.monotonic()
                self.idle.append(connection)
            else:
                connection.close()
        cookies.update(answer.cookies())
        return answer


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values."""
    return values[max(math.ceil(share * len(values)) - 1, 0)] if values else 0.0


def latencies(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of the requests that went well, in milliseconds."""
    values = sorted(outcome.milliseconds for outcome in outcomes if not outcome.reason)
    found = {
        "p50_ms": percentile(values, 0.5),
        "p99_ms": percentile(values, 0.99),
        "max_ms": values[-1] if values else 0.0,
    }
    return {name: round(value, 1) for name, value in found.items()}


class Run:
    """One run of a load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.client = Client(load)
        self.random = random.Random(load.seed)
        self.visitors = [Visitor() for _ in range(load.sessions)]
        self.poster = Visitor()
        self.static = list(load.static)
        self.name = uuid.uuid4().hex[:8]
        self.posts = 0
        self.accepted: dict[str, tuple[float, str]] = {}
        self.asked: set[str] = set()
        self.outcomes: list[Outcome] = []
        self.served_by: Counter[str] = Counter()
        self.late = 0.0
        self.stopped = threading.Event()
        self.begun = 0.0
        self.started_at = 0.0

    # Before: cookies, logins and paths. Whatever fails here is an error of the caller, not of the cluster under load.

    async def prepare(self) -> None:
        async with asyncio.timeout(max(self.load.deadline, 30)):
            if "static" in self.load.mix and not self.static:
                page = await self._expect("GET", "/", {})
                found = set(re.findall(r'(?:src|href)="([^"]*/static/[^"]+)"', page.body.decode(errors="replace")))
                self.static = sorted(urlsplit(path).path for path in found)
                if not self.static:
                    raise Failure("preparation", "no /static/ address in the home page: give --static")
            if "post" in self.load.mix:
                await self._expect("GET", "/guestbook/", self.poster.cookies)
            if "session" in self.load.mix:
                for visitor in self.visitors:
                    if self.load.user:
                        await self._login(visitor)
                    await self._visit(visitor, keep=True)

    async def _expect(self, method: str, path: str, cookies: dict[str, str], status: int = 200, **more: Any) -> Answer:
        answer = await self.client.request(method, path, cookies, **more)
        if answer.status != status:
            raise Failure("preparation", f"{method} {path} answered {answer.status}, wanted {status}", answer.status)
        return answer

    async def _login(self, visitor: Visitor) -> None:
        path = "/accounts/login/"
        await self._expect("GET", path, visitor.cookies)
        form = {"username": self.load.user, "password": self.load.password}
        form["csrfmiddlewaretoken"] = visitor.cookies.get("csrftoken", "")
        await self._expect("POST", path, visitor.cookies, 302, form=form)

    # The requests.

    async def _send(self, kind: str, keep: bool, outcome: Outcome) -> None:
        if kind == "session":
            idle = [visitor for visitor in self.visitors if not visitor.users]
            await self._visit(self.random.choice(idle or self.visitors), keep, outcome)
            return
        if kind == "post":
            await self._post(keep, outcome)
            return
        path = {"plain": "/plain/", "page": "/", "slow": f"/slow/?seconds={self.load.slow_seconds:g}"}.get(kind)
        path = path or self.random.choice(self.static)
        self._check(await self.client.request("GET", path, {}, keep=keep, outcome=outcome), outcome)

    def _check(self, answer: Answer, outcome: Outcome | None, wanted: int = 200) -> Answer:
        if outcome:
            outcome.status = answer.status
            self.served_by[answer.header("x-served-by") or "-"] += 1
        if answer.status >= 500:
            raise Failure("status 5xx", str(answer.status), answer.status)
        if answer.status != wanted:
            raise Failure("unexpected status", f"{answer.status}, wanted {wanted}", answer.status)
        return answer

    async def _visit(self, visitor: Visitor, keep: bool, outcome: Outcome | None = None) -> None:
        """The page with the counter of the session: it must say the right user, and go up.

        A request that got no answer may still be at work and save its count late, so for the time of a deadline after
        one a count that does not go up is no loss; a session that begins again with 1 always is.
        """
        now = asyncio.get_running_loop().time
        if visitor.users:
            visitor.unsure_until = math.inf
        visitor.users += 1
        page: dict[str, Any] = {}
        try:
            answer = await self.client.request(
                "GET", "/where/?format=json", visitor.cookies, keep=keep, outcome=outcome
            )
            self._check(answer, outcome)
            page = json.loads(answer.body)
            user, counter = page["user"], int(page["counter"])
        except (ValueError, KeyError, TypeError):
            raise Failure("protocol", "the page is no JSON with user and counter") from None
        finally:
            visitor.users -= 1
            if not page or (not visitor.users and visitor.unsure_until == math.inf):
                visitor.unsure_until = now() + self.load.deadline
        if self.load.user and user != self.load.user:
            raise Failure("lost login", f"the page says {user!r}")
        before, visitor.counter = visitor.counter, counter
        if (counter == 1 and before > 1) or (counter <= before and now() > visitor.unsure_until):
            raise Failure("lost session", f"the counter was {before} and is {counter}")

    async def _post(self, keep: bool, outcome: Outcome) -> None:
        token = f"{self.name}-{self.posts // POSTS_IN_A_BATCH}-{self.posts}"
        self.posts += 1
        self.asked.add(token)
        form = {"token": token, "name": "Load", "message": f"Entry {token}"}
        form["csrfmiddlewaretoken"] = self.poster.cookies.get("csrftoken", "")
        answer = await self.client.request(
            "POST", "/guestbook/", dict(self.poster.cookies), form=form, keep=keep, outcome=outcome
        )
        if answer.status == 409:
            raise Failure("doubled POST", "the site says that it has this entry already", 409)
        self._check(answer, outcome, 302)
        self.accepted[token] = (outcome.due, outcome.kind)

    async def _one(self, due: float, kind: str, keep: bool) -> None:
        outcome = Outcome(round(due - self.begun, 3), kind, 0.0)
        try:
            async with asyncio.timeout_at(due + self.load.deadline):
                await self._send(kind, keep, outcome)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = as_failure(error)
            outcome.reason, outcome.detail = failure.reason, failure.detail
            outcome.status = failure.status or outcome.status
        outcome.milliseconds = (asyncio.get_running_loop().time() - due) * 1000
        self.outcomes.append(outcome)

    # The run.

    async def main(self) -> dict[str, Any]:
        try:
            await self.prepare()
        except (Failure, OSError) as error:
            failure = as_failure(error)
            self.client.close()
            raise Failure("preparation", f"{failure.reason}: {failure.detail}") from error
        kinds, shares = list(self.load.mix), list(self.load.mix.values())
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        self.started_at, self.begun = time.time(), loop.time()
        for number in range(int(self.load.rate * self.load.seconds)):
            due = self.begun + number / self.load.rate
            if (ahead := due - loop.time()) > 0:
                await asyncio.sleep(ahead)
            if self.stopped.is_set():
                break
            self.late = max(self.late, loop.time() - due)
            kind = self.random.choices(kinds, shares)[0]
            keep = self.random.random() < self.load.keepalive
            if len(tasks) >= self.load.most_in_flight:
                detail = f"{len(tasks)} requests are not answered yet"
                self.outcomes.append(Outcome(round(due - self.begun, 3), kind, 0.0, "not sent", detail))
                continue
            task = asyncio.create_task(self._one(due, kind, keep))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)  # each of them ends at its deadline
        lasted = loop.time() - self.begun
        posts = await self._count_posts()
        self.client.close()
        return self._report(lasted, posts)

    async def _count_posts(self) -> dict[str, Any]:
        """What the site says about the entries: each accepted one is there, and once."""
        if not self.asked:
            return {"asked": 0, "accepted": 0, "found": 0, "lost": [], "doubled": [], "unacknowledged": 0}
        found: Counter[str] = Counter()
        for batch in range((self.posts - 1) // POSTS_IN_A_BATCH + 1):
            path = f"/guestbook/tokens/?prefix={self.name}-{batch}-"
            try:
                async with asyncio.timeout(max(self.load.deadline, 30)):
                    answer = await self._expect("GET", path, {}, keep=False)
                found.update(json.loads(answer.body)["tokens"])
            except Exception as error:
                failure = as_failure(error)
                detail = f"the entries could not be counted: {failure.reason} {failure.detail}"
                self.outcomes.append(Outcome(self.load.seconds, "post", 0.0, "not counted", detail))
                return {"asked": len(self.asked), "accepted": len(self.accepted), "found": None}
        lost = sorted(set(self.accepted) - set(found))
        doubled = sorted(token for token, count in found.items() if count > 1)
        for token, reason in [
            *((token, "lost POST") for token in lost),
            *((token, "doubled POST") for token in doubled),
        ]:
            due = self.accepted.get(token, (self.load.seconds, ""))[0]
            self.outcomes.append(Outcome(due, "post", 0.0, reason, token))
        return {
            "asked": len(self.asked),
            "accepted": len(self.accepted),
            "found": len(found),
            "lost": lost[:MOST_FAILURES_LISTED],
            "doubled": doubled[:MOST_FAILURES_LISTED],
            "unacknowledged": len(set(found) - set(self.accepted)),  # written, but the client was not told so
        }

    def _report(self, lasted: float, posts: dict[str, Any]) -> dict[str, Any]:
        failed = sorted((outcome for outcome in self.outcomes if outcome.reason), key=lambda outcome: outcome.due)
        by_kind: defaultdict[str, list[Outcome]] = defaultdict(list)
        by_second: defaultdict[int, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            by_kind[outcome.kind].append(outcome)
            by_second[int(outcome.due)].append(outcome)

        def counts(outcomes: list[Outcome]) -> dict[str, Any]:
            bad = sum(bool(outcome.reason) for outcome in outcomes)
            return {"sent": len(outcomes), "ok": len(outcomes) - bad, "failed": bad, **latencies(outcomes)}

        return {
            "url": self.load.url,
            "started": self.started_at,
            "seconds": round(lasted, 3),
            "rate": self.load.rate,
            **counts(self.outcomes),
            "kinds": {kind: counts(outcomes) for kind, outcomes in sorted(by_kind.items())},
            "reasons": dict(Counter(outcome.reason for outcome in failed)),
            "failures": [
                {"at": round(self.started_at + outcome.due, 3), **asdict(outcome)}
                for outcome in failed[:MOST_FAILURES_LISTED]
            ],
            "per_second": [{"second": second, **counts(outcomes)} for second, outcomes in sorted(by_second.items())],
            "posts": posts,
            "served_by": dict(self.served_by),
            "connections": {"opened": self.client.opened, "used_again": self.client.used_again},
            "late_ms": round(self.late * 1000, 1),  # how far the generator itself fell behind
        }


def run(load: Load) -> dict[str, Any]:
    """Send it all, and report. Raises Failure when it cannot begin."""
    return asyncio.run(Run(load).main())


@dataclass
class Running:
    """A load that runs in the background. The report is there when it has ended."""

    _run: Run
    report: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """Every single request that has ended, for what the report does not sum up."""
        return self._run.outcomes

    def stop(self) -> None:
        """No further requests; those in flight are waited for."""
        self._run.stopped.set()

    def wait_until_sending(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not self._run.started_at:
            if self.error:
                raise self.error
            if time.monotonic() > deadline:
                raise TimeoutError("the load did not begin")
            time.sleep(0.02)


def be_ahead_of_others() -> None:
    """Let this thread run as soon as it has something to do.

    Clients stand elsewhere: what is measured must not be how long they wait for a processor of the cluster under test.
    """
    with contextlib.suppress(OSError):  # not allowed here: then they do wait, and the figures say so
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


@contextlib.contextmanager
def running(load: Load) -> Iterator[Running]:
    """Run it while the block is executed; leaving the block stops it and waits for the report."""
    state = Running(Run(load))

    def work() -> None:
        be_ahead_of_others()
        try:
            state.report = asyncio.run(state._run.main())
        except BaseException as error:
            state.error = error

    thread = threading.Thread(target=work, name="load", daemon=True)
    thread.start()
    try:
        state.wait_until_sending()
        yield state
    finally:
        state.stop()
        thread.join(load.deadline + 120)
    if state.error:
        raise state.error


def parse_mix(text: str) -> dict[str, float]:
    """ "plain=6,post=2" as shares by kind."""
    try:
        return {kind: float(share) for kind, share in (part.split("=", 1) for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted for example plain=6,post=2 of {', '.join(KINDS)}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Send a constant stream of requests and report every failure as JSON.")
    parser.add_argument("--url", required=True, help="scheme, name and port of the site")
    parser.add_argument("--address", default="", help="IP address to connect to instead of looking the name up")
    parser.add_argument("--ca", default="", help="file with the certificates to trust")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--mix", type=parse_mix, help=f"shares by kind, of {', '.join(KINDS)}: plain=6,post=2")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds for one request (%(default)s)")
    parser.add_argument(
        "--keepalive", type=float, default=0.5, help="share of requests on used connections (%(default)s)"
    )
    parser.add_argument("--sessions", type=int, default=10, help="number of sessions (%(default)s)")
    parser.add_argument("--user", default="", help="log the sessions in; the password is in LOAD_PASSWORD")
    parser.add_argument("--static", action="append", default=[], help="path of a static file; those of the home page")
    parser.add_argument("--slow-seconds", type=float, default=1.0, help="how slow the slow page is (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of kinds and connections (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the report here instead of printing it")
    given = vars(parser.parse_args(arguments))
    output = given.pop("output")
    mix = given.pop("mix")
    try:
        load = Load(
            **(given | {"static": tuple(given["static"])} | ({"mix": mix} if mix else {})),
            password=os.environ.get("LOAD_PASSWORD", ""),
        )
        report = run(load)
    except (ValueError, Failure) as error:
        print(f"load: {error.detail if isinstance(error, Failure) else error}", file=sys.stderr)
        return 2
    text = json.dumps(report, indent=1)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
