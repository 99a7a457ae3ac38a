# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of a host that hangs or fails takes no other part along; alerts come from whoever answers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _status_io as io


def hang() -> dict[str, Any]:
    time.sleep(5)
    return {}


def fail() -> dict[str, Any]:
    raise FileNotFoundError(2, "No such file or directory", "ip")


def test_a_part_that_hangs_costs_its_own_time() -> None:
    patience = io.Patience(seconds=1.0, part=0.1)
    began = time.monotonic()
    assert patience.read(hang) == {"error": "no answer within 0.1 s"}
    assert time.monotonic() - began < 1
    assert patience.read(lambda: {"well": True}) == {"well": True}


def test_when_all_time_is_gone_nobody_is_asked() -> None:
    patience = io.Patience(seconds=0.1, part=1.0)
    assert "no answer" in patience.read(hang)["error"]
    assert patience.read(lambda: {"well": True}) == {"error": "was not asked: the parts before took all the time"}


def test_a_program_that_hangs_is_interrupted() -> None:
    patience = io.Patience(seconds=1.0, part=0.2)

    def program() -> dict[str, Any]:
        subprocess.run(["sleep", "5"], check=False)
        return {}

    assert "no answer" in patience.read(program)["error"]


def test_a_part_that_fails_says_why() -> None:
    assert "No such file" in io.Patience(1.0, 1.0).read(fail)["error"]


def test_a_part_has_a_little_less_than_all_and_a_request_less_than_that() -> None:
    assert "within 0.5 s" in io.Patience(1.0).read(hang)["error"]
    assert io.Patience(5.0).of_request == pytest.approx(4.2)
    assert io.Patience(15.0, 12.0).of_request == pytest.approx(11.7)


def test_each_tier_brings_its_units_and_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "read_host", lambda names: {"asked": list(names)})
    for tier in ("haproxy", "django", "nginx_static"):
        monkeypatch.setitem(io.READERS, tier, lambda options: dict(options))
    static = {"units": ["c"], "timeout": 1}
    tiers: dict[str, dict[str, Any]] = {
        "haproxy": {"units": ["a", "b"]},
        "django": {"timeout": None},
        "nginx_static": static,
    }
    found = io.read(tiers, io.Patience(5.0))
    assert found["host"] == {"asked": ["a", "b", "c"]}
    assert found["django"]["timeout"] == pytest.approx(4.2)
    assert found["nginx_static"] == static


def test_an_authority_that_has_no_file_is_none(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    assert io.there(str(authority)) == ""
    authority.write_text("...")
    assert io.there(str(authority)) == str(authority)


@contextmanager
def answering(path: str, content: Any) -> Iterator[str]:
    """A server that knows one path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path.startswith(path)
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode() if good else b"no")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


NOBODY = "http://127.0.0.1:9"
ALERT = {"labels": {"alertname": "DiskFull"}}


def test_alertmanager_is_asked_for_what_it_would_tell_somebody() -> None:
    with answering("/api/v2/alerts?active=true&silenced=false", [ALERT]) as url:
        found = io.read_prometheus({"alertmanager_url": url + "/", "prometheus_url": NOBODY, "timeout": 2.0})
    assert found == {"source": "alertmanager", "alerts": [ALERT], "problem": ""}


def test_prometheus_is_asked_when_alertmanager_is_gone() -> None:
    with answering("/api/v1/alerts", {"data": {"alerts": [ALERT]}}) as url:
        found = io.read_prometheus({"alertmanager_url": NOBODY, "prometheus_url": url, "timeout": 2.0})
    assert found["source"] == "prometheus"
    assert found["alerts"] == [ALERT]
    assert found["problem"].startswith("Alertmanager does not answer: ")


@pytest.mark.parametrize("url", [NOBODY, "file:///etc/passwd"])
def test_when_nobody_answers_that_is_an_error(url: str) -> None:
    params = {"alertmanager_url": url, "prometheus_url": url, "timeout": 1.0}
    found = io.Patience(3.0, 3.0).read(lambda: io.read_prometheus(params))
    assert list(found) == ["error"]


WELL, BUSY, GONE = (200, {"status": "ok"}), (503, {"reasons": ["database: timeout"]}), (0, {"error": "refused"})


@pytest.mark.parametrize(
    ("answers", "found", "asked"),
    [
        ([WELL, BUSY], WELL, 1),
        ([BUSY, WELL], WELL, 2),
        ([BUSY, GONE], BUSY, 2),
        ([GONE, BUSY], GONE, 2),
        ([BUSY, TimeoutError("no answer within 4.5 s")], BUSY, 2),
    ],
)
def test_a_node_that_is_not_well_is_asked_once_more(answers: list[Any], found: Any, asked: int) -> None:
    left = list(answers)

    def ask() -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert io.still(ask) == found
    assert len(answers) - len(left) == asked
