#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application server for the tests: says who it is and what it was sent.

/-/health        200 when asked the way a Django project behind SecurityMiddleware wants it, else 400
/slow?SECONDS    answers after that time
/seen?PATH       how many requests PATH had, as plain text
/once/...        the first request for the path is closed without an answer, later ones are answered
anything         {"server", "method", "path", "headers", "seen": how many requests this path had, "body"}
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, PORT = sys.argv[1], int(sys.argv[2])
SEEN: Counter[str] = Counter()
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 65
    disable_nagle_algorithm = True

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path, _, query = self.path.partition("?")
        if path == "/seen":
            self.send(200, str(SEEN[query]).encode())
            return
        with LOCK:
            SEEN[path] += 1
            seen = SEEN[path]
        status = 200
        if path == "/-/health":
            asked = (self.headers["Host"], self.headers["X-Forwarded-Proto"])
            status = 200 if asked == ("flotilla.test", "https") or PORT == 8080 else 400
        elif path == "/slow":
            time.sleep(float(query))
        elif path.startswith("/once/") and seen == 1:
            self.close_connection = True
            return
        content = {"server": NAME, "method": self.command, "path": self.path, "seen": seen, "body": body}
        data = json.dumps(content | {"headers": [list(item) for item in self.headers.items()]}).encode()
        self.send(status, data)

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("", PORT), Handler).serve_forever()
