# SPDX-License-Identifier: GPL-3.0-or-later
"""Two static servers, packs for them, and plain HTTP without a client's cleverness."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from tests.cluster import Lab, Recap

CSS = b"body{color:teal}" * 100
FONT = b"wOF2 and what follows"
ROOT = "/srv/static"

# Sends a request from a host of the lab, where the address of the connection matters. The body comes in hexadecimal.
REQUEST = """
import http.client, json, sys
order = json.loads(sys.stdin.readline())
connection = http.client.HTTPConnection(order["address"], order["port"], timeout=10)
body = bytes.fromhex(order["body"])
headers = dict(order["headers"])
try:
    if order["length"]:
        connection.putrequest(order["method"], order["path"])
        connection.putheader("Content-Length", str(order["length"]))
        connection.endheaders(body)
        print(0)
    else:
        connection.request(order["method"], order["path"], body=body or None, headers=headers)
        print(connection.getresponse().status)
except (BrokenPipeError, ConnectionResetError):
    # Nginx refuses a body that is too large by its announced size and closes.
    print(connection.getresponse().status)
"""


@dataclass(frozen=True)
class Release:
    files: dict[str, bytes]

    def pack(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in self.files.items():
                info = tarfile.TarInfo(f"static/{name}")
                info.size, info.mtime = len(content), 1_100_000_000
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


FIRST = Release(
    {
        "css/site.0123456789ab.css": CSS,
        "css/site.0123456789ab.css.gz": gzip.compress(CSS, mtime=0),
        "css/site.0123456789ab.css.br": b"what brotli made of it",
        "css/site.css": CSS,
        "robots.txt": b"first\n",
        "robots.txt.br": b"brotli of the first",
        "font.0123456789ab.woff2": FONT,
        "img/mark.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "js/app.0123456789ab.mjs": b"export default 1;\n",
        "app.webmanifest": b"{}",
        ".secret": b"not for the world",
    }
)
SECOND = Release(
    {
        "css/site.ba9876543210.css": CSS + b"/* two */",
        "css/site.css": CSS,
        "robots.txt": b"second\n",
    }
)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Tier:
    lab: Lab
    address: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.address = {host: self.lab.address(host) for host in ("static1", "static2")}

    def get(self, host: str, path: str, method: str = "GET", port: int = 8080, **headers: str) -> Answer:
        """Ask from this machine, which is nobody the servers know."""
        connection = http.client.HTTPConnection(self.address[host], port, timeout=10)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def internal(
        self, source: str, host: str, method: str, path: str, body: bytes = b"", length: int = 0, **headers: str
    ) -> int:
        """Ask the internal server of a host from another host; with ``length`` break off after the body."""
        order: dict[str, Any] = {
            "address": self.address[host], "port": 8081, "method": method, "path": path,
            "body": body.hex(), "length": length, "headers": headers,
        }  # fmt: skip
        self.lab.ssh(source, "cat > /root/request.py", REQUEST)
        return int(self.lab.ssh(source, "python3 /root/request.py", json.dumps(order) + "\n"))

    def put(self, host: str, name: str, body: bytes) -> int:
        return self.internal("static1", host, "PUT", f"/releases/{name}", body)

    def wipe(self, *hosts: str) -> None:
        for host in hosts:
            self.lab.ssh(host, f"find {ROOT} -mindepth 2 -delete; rm -f {ROOT}/health")

    def play(self, name: str, *arguments: str) -> Recap:
        return self.lab.playbook("--limit", "nginx_static", *arguments, playbook=f"molecule/nginx_static/{name}.yml")

    def publish(self, *arguments: str) -> Recap:
        recap = self.play("publish", *arguments)
        assert recap.returncode == 0, recap.output
        return recap

    def sums(self, host: str) -> str:
        return self.lab.ssh(host, f"cd {ROOT}/files && find . -type f -exec sha256sum {{}} + | sort -k2")
