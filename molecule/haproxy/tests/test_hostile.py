# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that no browser makes: each gets a clean refusal, hides no second request, and disturbs nobody else."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest
from balancer import APPS, BALANCER, CONTEXT, DOMAIN, Load, on

HOST = f"Host: {DOMAIN}\r\n"
HIDDEN = f"GET /smuggled HTTP/1.1\r\n{HOST}\r\n"
POST = f"POST /x HTTP/1.1\r\n{HOST}"
CHUNKED = f"{POST}Transfer-Encoding: chunked\r\n"
LENGTH = len(HIDDEN) + 5


def get(headers: str = "", target: str = "/x", version: str = "HTTP/1.1") -> str:
    return f"GET {target} {version}\r\n{HOST}{headers}\r\n"


REFUSED = {
    # Where does the body end? Two answers to that are two requests for one who reads it otherwise.
    "two lengths": f"{POST}Content-Length: 5\r\nContent-Length: {LENGTH}\r\n\r\n{HIDDEN}",
    "two lengths in one line": f"{POST}Content-Length: 5, {LENGTH}\r\n\r\n{HIDDEN}",
    "length with a sign": f"{POST}Content-Length: +5\r\n\r\n{HIDDEN}",
    "negative length": f"{POST}Content-Length: -5\r\n\r\n{HIDDEN}",
    "hexadecimal length": f"{POST}Content-Length: 0x5\r\n\r\n{HIDDEN}",
    "length with a letter": f"{POST}Content-Length: 5a\r\n\r\n{HIDDEN}",
    "length that overflows": f"{POST}Content-Length: 99999999999999999999999\r\n\r\n{HIDDEN}",
    "empty length": f"{POST}Content-Length: \r\n\r\n{HIDDEN}",
    "unknown coding before chunked": f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "coding after chunked": f"{POST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two codings": f"{CHUNKED}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "chunk that is no number": f"{CHUNKED}\r\nzz\r\nhello\r\n0\r\n\r\n{HIDDEN}",
    "negative chunk": f"{CHUNKED}\r\n-5\r\nhello\r\n0\r\n\r\n{HIDDEN}",
    "chunk that overflows": f"{CHUNKED}\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n{HIDDEN}",
    "chunk longer than it says": f"{CHUNKED}\r\n3\r\nhello\r\n0\r\n\r\n{HIDDEN}",
    "blank before a chunk": f"{CHUNKED}\r\n 5\r\nhello\r\n0\r\n\r\n{HIDDEN}",
    # What the lines of the header are.
    "blank before the colon": get("X-Name : value\r\n"),
    "blank before the colon of the length": f"{POST}Content-Length : {LENGTH}\r\n\r\n{HIDDEN}",
    "blank in a name": get("X Name: value\r\n"),
    "no colon": get("nonsense\r\n"),
    "no name": get(": value\r\n"),
    "zero byte in a name": get("X-\0Name: value\r\n"),
    "zero byte in a value": get("X-Name: val\0ue\r\n"),
    "control character in a name": get("X-\x01Name: value\r\n"),
    "bare carriage return": get("X-Name: a\rX-Other: b\r\n"),
    "continued first line": f"GET /x HTTP/1.1\r\n Host: evil.example\r\n{HOST}\r\n",
    # Whom it is for.
    "two hosts": get("Host: evil.example\r\n"),
    "other host in the address": get(target="http://evil.example/x"),
    # The first line.
    "no method": f" /x HTTP/1.1\r\n{HOST}\r\n",
    "strange method": f"G@T /x HTTP/1.1\r\n{HOST}\r\n",
    "blank in the address": get(target="/x y"),
    "zero byte in the address": get(target="/x\0y"),
    "control character in the address": get(target="/x\x01y"),
    "no version": f"GET /x\r\n{HOST}\r\n",
    "version 0.9 with a header": get(version="HTTP/0.9"),
    "version of letters": get(version="HTTP/one"),
    "other protocol": "SSH-2.0-OpenSSH_9.9\r\n\r\n",
    # How much.
    "address of 20,000": get(target="/" + "x" * 20000),
    "header of 20,000": get("X-Name: " + "x" * 20000 + "\r\n"),
    "200 headers": get("".join(f"X-{number}: x\r\n" for number in range(200))),
}


def tell(text: str, seconds: float = 15) -> bytes:
    """All that is answered before the balancer hangs up."""
    with CONTEXT.wrap_socket(socket.create_connection((BALANCER, 443), timeout=5), server_hostname=DOMAIN) as client:
        client.settimeout(seconds)
        client.sendall(text.encode("latin-1"))
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_is_refused(text: str) -> None:
    started = time.monotonic()
    answer = tell(text)
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer), answer[:200]
    assert answer.count(b"HTTP/1.") == 1, "a second request was answered"
    assert time.monotonic() - started < 5, "the connection was kept"


def test_nobody_else_is_disturbed() -> None:
    with Load(rate=50).running() as load:
        started = time.monotonic()
        while time.monotonic() - started < 3:
            for text in REFUSED.values():
                tell(text)
    assert not load.failures, load.failures
    assert len(load.answers) > 100
    assert {name: on(name, "curl -s http://localhost:8000/seen?/smuggled").strip() for name in APPS} == dict.fromkeys(
        APPS, "0"
    )


def test_who_takes_his_time_is_hung_up_on_and_holds_nobody_up() -> None:
    """Slow headers: a byte now and then, from many connections, so that the request never ends."""
    ends: list[float] = []
    answers: list[bytes] = []

    def dawdle() -> None:
        with CONTEXT.wrap_socket(
            socket.create_connection((BALANCER, 443), timeout=5), server_hostname=DOMAIN
        ) as client:
            client.settimeout(1)
            client.sendall(f"GET /x HTTP/1.1\r\n{HOST}".encode())
            started = time.monotonic()
            while time.monotonic() - started < 30:
                try:
                    client.sendall(b"X-a: b\r\n")
                    answers.append(client.recv(100))
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
            ends.append(time.monotonic() - started)

    threads = [threading.Thread(target=dawdle) for _ in range(100)]
    with Load(rate=30).running() as load:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not load.failures, load.failures
    # haproxy_timeout_http_request, for the whole header.
    assert max(ends) < 14, max(ends)
    assert all(b" 408 " in answer for answer in answers if answer)
    assert any(answers)
