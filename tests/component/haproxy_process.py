# SPDX-License-Identifier: GPL-3.0-or-later
"""Real HAProxy processes on the loopback, and small application servers behind them."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "haproxy"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], Any], timeout: float = 10) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not after {timeout} s"
        time.sleep(0.02)
    return found


class App:
    """An application server: /health, /slow/SECONDS, /tunnel (switches protocols and echoes), and / for all else."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.healthy = True
        self.broken = False  # 500 for all but /health
        self.served: list[str] = []
        self.served_while_unhealthy: list[str] = []
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/health":
                    return self.answer(200 if app.healthy else 503)
                app.served.append(self.path)
                if not app.healthy:
                    app.served_while_unhealthy.append(self.path)
                if self.path.startswith("/slow/"):
                    time.sleep(float(self.path.removeprefix("/slow/")))
                if self.path == "/tunnel":
                    return self.tunnel()
                return self.answer(500 if app.broken else 200)

            def answer(self, status: int) -> None:
                body = app.name.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def tunnel(self) -> None:
                self.send_response(101)
                self.send_header("Upgrade", "echo")
                self.send_header("Connection", "Upgrade")
                self.end_headers()
                self.close_connection = True
                while line := self.rfile.readline():
                    self.wfile.write(line)

            def log_message(self, *_arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_arguments: Any) -> None:
                """Connections that a test cuts are not news."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class Balancer:
    """HAProxy with a master, as the role runs it, but with quick checks."""

    def __init__(self, apps: list[App], more: str = "", keep_state: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hap"))
        self.port = free_port()
        self.tcp_port = free_port()
        self.admin = str(self.directory / "admin.sock")
        self.operator = str(self.directory / "operator.sock")
        self.master = str(self.directory / "master.sock")
        self.tcp = f"127.0.0.1:{self.tcp_port}"
        self.state_file = self.directory / "state"
        self._process: subprocess.Popen[bytes] | None = None
        servers = "\n".join(f"    server {app.name} 127.0.0.1:{app.port} cookie {app.name} weight 10" for app in apps)
        plain = "\n".join(f"    server {app.name} 127.0.0.1:{app.port} no-check" for app in apps)
        (self.directory / "haproxy.cfg").write_text(f"""
global
    stats socket {self.admin} mode 660 level admin expose-fd listeners
    stats socket {self.operator} mode 660 level operator
    stats socket ipv4@{self.tcp} level admin
    server-state-file {self.state_file}
    hard-stop-after 20s
defaults
    mode http
    {"load-server-state-from-file global" if keep_state else ""}
    timeout connect 1s
    timeout client 20s
    timeout server 20s
    timeout tunnel 60s
    option idle-close-on-response
    retries 3
    option redispatch 1
    default-server check inter 200ms fastinter 100ms fall 2 rise 2
frontend site
    bind 127.0.0.1:{self.port}
    use_backend plain if {{ path_beg /plain }}
    default_backend django
backend django
    cookie node insert indirect nocache
    option httpchk GET /health
    http-response set-header X-Served-By %s
{servers}
backend plain
{plain}
{more}
""")

    def start(self) -> None:
        command = [HAPROXY, "-Ws", "-f", str(self.directory / "haproxy.cfg"), "-S", f"{self.master},mode,600"]
        log = (self.directory / "log").open("ab")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("HAProxy's socket", lambda: self.pid())
        # Servers are up when they are configured: wait until a check has said so.
        wait_for("the first checks", lambda: self.checked() == {True})

    def pid(self) -> str:
        try:
            return next(line for line in self.say("show info").splitlines() if line.startswith("Pid: "))[5:]
        except (OSError, StopIteration):
            return ""

    def say(self, command: str) -> str:
        return self._exchange(self.admin, command)

    def _exchange(self, path: str, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(path)
            client.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    def master_listens(self) -> bool:
        """A master that has just started a worker executes itself anew, and a signal that comes before that is lost."""
        try:
            return f"\n{self.pid()} " in self._exchange(self.master, "show proc;quit")
        except OSError:
            return False

    def checked(self) -> set[bool]:
        """Whether the servers have been checked."""
        header, *lines = self.say("show stat").strip().splitlines()
        column = header.split(",").index("check_status")
        rows = [line.split(",") for line in lines]
        return {
            row[column].startswith("L") for row in rows if row[0] == "django" and row[1] not in ("FRONTEND", "BACKEND")
        }

    def masks(self, backend: str = "django") -> dict[str, tuple[int, int, int]]:
        """Operational state, administrative state and weight of each server, as HAProxy says."""
        lines = self.say(f"show servers state {backend}").splitlines()[2:]
        rows = [line.split() for line in lines if line]
        return {row[3]: (int(row[5]), int(row[6]), int(row[7])) for row in rows}

    def reload(self) -> None:
        assert self._process
        before = self.pid()
        state = self.say("show servers state")
        self.state_file.write_text(state)
        wait_for("the master", self.master_listens)
        self._process.send_signal(signal.SIGUSR2)
        wait_for("a new worker", lambda: self.pid() not in ("", before))

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            Path(self.admin).unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- traffic

    def get(self, path: str = "/", cookie: str = "") -> tuple[int, str]:
        """Status and the server that answered."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            client.request("GET", path, headers={"Cookie": f"node={cookie}"} if cookie else {})
            answer = client.getresponse()
            answer.read()
            return answer.status, answer.headers.get("X-Served-By", "")
        finally:
            client.close()

    def start_slow(self, seconds: float, server: str) -> Slow:
        """A request that is at this server when this returns."""
        slow = Slow(self, seconds, server)
        wait_for("the slow request", lambda: self.sessions(server))
        return slow

    def sessions(self, server: str) -> int:
        rows = [line.split(",") for line in self.say("show stat").splitlines()]
        return sum(int(row[4]) for row in rows if row[:2] == ["django", server])

    @contextmanager
    def tunnel(self, server: str) -> Iterator[socket.socket]:
        """A connection that switched protocols, as a web socket does."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            request = f"GET /tunnel HTTP/1.1\r\nHost: x\r\nCookie: node={server}\r\n"
            client.sendall(f"{request}Connection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += client.recv(1024)
            assert b" 101 " in answer, answer
            yield client


class Slow(threading.Thread):
    """A slow request, under way."""

    def __init__(self, balancer: Balancer, seconds: float, server: str) -> None:
        super().__init__(daemon=True)
        self.balancer, self.seconds, self.server = balancer, seconds, server
        self.answer: tuple[int, str] = (0, "")
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        with suppress(OSError, http.client.HTTPException):
            self.answer = self.balancer.get(f"/slow/{self.seconds}", cookie=self.server)
        self.ended = time.monotonic()


class Stream(threading.Thread):
    """One client that sends request after request over a connection that is kept alive."""

    def __init__(self, balancer: Balancer, cookie: str = "", pause: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.balancer, self.cookie, self.pause = balancer, cookie, pause
        self.answers: list[tuple[float, int, str]] = []
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.balancer.port, timeout=5)
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                client.request("GET", "/", headers={"Cookie": f"node={self.cookie}"} if self.cookie else {})
                answer = client.getresponse()
                answer.read()
                self.answers.append((begun, answer.status, answer.headers.get("X-Served-By", "")))
            except (OSError, http.client.HTTPException):
                self.answers.append((begun, 0, ""))
                client.close()
            time.sleep(self.pause)
        client.close()

    def end(self) -> list[tuple[float, int, str]]:
        self._over.set()
        self.join(5)
        return self.answers


def echoes(client: socket.socket) -> bool:
    """Whether a tunnel is still open at both ends."""
    try:
        client.sendall(b"hello\n")
        return client.recv(100) == b"hello\n"
    except OSError:
        return False
