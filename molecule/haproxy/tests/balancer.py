# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of this scenario ask the balancer with."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
LAB_NAME = os.environ.get("LAB_NAME", "molecule-haproxy")
LAB = ROOT / ".lab" / LAB_NAME
DOMAIN = "flotilla.test"
ADDRESSES = dict(re.findall(r"^Host (\w+)\n\s+HostName (\S+)", (LAB / "ssh_config").read_text(), flags=re.MULTILINE))
BALANCER = ADDRESSES["lb1"]
APPS = ("app1", "app2", "app3")


def lab(*arguments: str, check: bool = True) -> str:
    """`lab/lab ...`; what it printed."""
    command = [str(ROOT / "lab" / "lab"), *arguments]
    result = subprocess.run(
        command, env=os.environ | {"LAB_NAME": LAB_NAME}, capture_output=True, text=True, check=False, timeout=60
    )
    assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def on(host: str, command: str, check: bool = True) -> str:
    return lab("ssh", host, "--", command, check=check)


def converge(check: bool = True, check_mode: bool = False, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Runs the role again, with other variables."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventories/lab"]
    command += ["molecule/haproxy/converge.yml", "-e", json.dumps(variables)]
    command += ["--check", "--diff"] if check_mode else []
    environment = os.environ | {"LAB_NAME": LAB_NAME, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def admin(command: str) -> str:
    """Says something to the balancer's admin socket."""
    program = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
        "s.sendall(sys.argv[1].encode()+b'\\n'); f=s.makefile(); print(f.read(), end='')"
    )
    return on("lb1", f'python3 -c "{program}" "{command}"')


def servers() -> dict[str, dict[str, str]]:
    """`show stat` of the Django servers, by name."""
    header, *lines = admin("show stat").strip().splitlines()
    names = header.lstrip("# ").split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines]
    return {row["svname"]: row for row in rows if row["pxname"] == "django" and row["svname"] not in ("BACKEND",)}


def wait_for(what: str, condition: Any, timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {timeout} s"
        time.sleep(0.2)


def all_up() -> bool:
    now = servers()
    return set(now) == set(APPS) and all(row["status"] == "UP" for row in now.values())


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str

    @property
    def json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.body)
        return answer

    @property
    def server(self) -> str:
        return self.headers["X-Served-By"] or ""

    def sent(self, name: str) -> list[str]:
        """The values of a header as the server behind the balancer got it."""
        return [value for key, value in self.json["headers"] if key.lower() == name.lower()]


def tls_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(LAB / "tls" / "ca.pem"))


CONTEXT = tls_context()


class Client(http.client.HTTPConnection):
    """A connection to the balancer by TLS, whatever DNS says, that checks the certificate."""

    def __init__(self, tls: bool = True, timeout: float = 10) -> None:
        super().__init__(DOMAIN, timeout=timeout)
        self.tls = tls

    def connect(self) -> None:
        self.sock = socket.create_connection((BALANCER, 443 if self.tls else 80), timeout=self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            self.sock = CONTEXT.wrap_socket(self.sock, server_hostname=DOMAIN)

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        self.request(method, path, body=body, headers=headers or {})
        response = self.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


def ask(path: str = "/", tls: bool = True, timeout: float = 10, **arguments: Any) -> Answer:
    """One request on a connection of its own."""
    client = Client(tls, timeout)
    try:
        return client.ask(path, **arguments)
    finally:
        client.close()


@dataclass
class Load:
    """Requests at a constant rate, each on a connection of its own or on one that is kept, and what became of them."""

    rate: float = 50
    timeout: float = 5
    keep: bool = False
    answers: list[tuple[float, str]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _one(self, client: Client | None) -> None:
        start = time.monotonic()
        try:
            answer = client.ask("/load") if client else ask("/load", timeout=self.timeout)
            if answer.status == 200:
                self.answers.append((start, answer.server))
            else:
                self.failures.append((start, str(answer.status)))
        except (OSError, http.client.HTTPException) as error:
            self.failures.append((start, repr(error)))

    def _keeper(self) -> None:
        client = Client(timeout=self.timeout)
        while not self._stop.wait(5 / self.rate):
            self._one(client)
            # A client may be told to open a new connection; it may not be hung up on.
        client.close()

    def _run(self) -> None:
        workers = []
        following = time.monotonic()
        while not self._stop.is_set():
            worker = threading.Thread(target=self._one, args=(None,))
            worker.start()
            workers.append(worker)
            following += 1 / self.rate
            self._stop.wait(max(0, following - time.monotonic()))
        for worker in workers:
            worker.join()

    @contextmanager
    def running(self) -> Iterator[Load]:
        target = self._keeper if self.keep else self._run
        threads = [threading.Thread(target=target) for _ in range(5 if self.keep else 1)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
