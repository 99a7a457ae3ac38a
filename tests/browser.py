# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium, Debian's, over its debugging pipe: no driver and no further package.

with Browser() as browser:
    page = browser.page(width=390, dark=True, login=("admin", password))
    page.open("http://192.0.2.1/")
    page.wait("document.title !== ''")
    assert page.errors == []
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 30.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it runs as root, and sees pages of the project alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    def __init__(self) -> None:
        program = shutil.which("chromium")
        assert program, "this test needs Debian's chromium"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        wired = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", wired, "bash", program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._buffer = b""
        self._pages: dict[str, Page] = {}
        self._answers: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)  # it ends when nobody commands it any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def tell(self, method: str, session: str = "", **parameters: Any) -> int:
        """Without waiting for the answer."""
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._number

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        number = self.tell(method, session, **parameters)
        self.pump(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def pump(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Takes what the browser says, until it is done."""
        end = time.monotonic() + patience
        while not done():
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser did not answer within {patience} s: {what}"
            self._take()

    def _take(self) -> None:
        got = os.read(self._in, 1 << 20)
        assert got, "the browser has ended"
        *whole, self._buffer = (self._buffer + got).split(b"\0")
        for text in whole:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].heard(message["method"], message["params"])

    def drain(self, seconds: float) -> None:
        """Takes what it says in this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._in], [], [], left)[0]:
                self._take()

    def page(
        self, width: int = 1280, height: int = 900, dark: bool = False, login: tuple[str, str] | None = None
    ) -> Page:
        context = self.ask("Target.createBrowserContext")["browserContextId"]  # knows no password of another page
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, login)
        self._pages[session] = page
        page.begin(width, height, dark)
        return page


class Page:
    """One tab. `errors` is what its console has of errors: exceptions, what a policy forbids, what was not loaded."""

    def __init__(self, browser: Browser, session: str, login: tuple[str, str] | None) -> None:
        self._browser, self._session, self._login = browser, session, login
        self._loaded = False
        self._width = 0
        self.errors: list[str] = []

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def begin(self, width: int, height: int, dark: bool) -> None:
        self._width = width
        phone = width < 600
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        if self._login:
            self._ask("Fetch.enable", handleAuthRequests=True)

    def heard(self, method: str, said: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Fetch.requestPaused":
            self._browser.tell("Fetch.continueRequest", self._session, requestId=said["requestId"])
        elif method == "Fetch.authRequired" and self._login:
            user, password = self._login
            answer = {"response": "ProvideCredentials", "username": user, "password": password}
            self._browser.tell(
                "Fetch.continueWithAuth", self._session, requestId=said["requestId"], authChallengeResponse=answer
            )
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description") or details["text"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(item.get("value")) for item in said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self._loaded = False
        answer = self._ask("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        self._browser.pump(lambda: self._loaded, f"load {url}")

    def evaluate(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, patience: float = PATIENCE) -> Any:
        end = time.monotonic() + patience
        while not (found := self.evaluate(condition)):
            assert time.monotonic() < end, f"not within {patience} s: {condition}; errors: {self.errors}"
            self._browser.drain(0.1)
        return found

    def screenshot(self, path: Path, whole: bool = True) -> None:
        clip: dict[str, Any] = {}
        if whole:
            height = self.evaluate("document.documentElement.scrollHeight")
            clip = {
                "clip": {"x": 0, "y": 0, "width": self._width, "height": height, "scale": 1},
                "captureBeyondViewport": True,
            }
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png", **clip)["data"]))
