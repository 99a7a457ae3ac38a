# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the Django tier share."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from tests.cluster import DOMAIN, ROOT, Lab

HOSTS = ["app1", "app2"]
PORT = 8000
USER, PASSWORD = "keeper", "a-login-of-this-scenario-only"
CONVERGE = str(ROOT / "molecule" / "django" / "converge.yml")


class Visitor:
    """A browser that goes to whichever node it is told to, as the balancer would send it, with one jar of cookies."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self.cookies: dict[str, str] = {}

    def request(self, method: str, host: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {
            "Host": DOMAIN,
            "X-Forwarded-Proto": "https",
            "Referer": f"https://{DOMAIN}/",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
        }
        answer = httpx.request(method, self._tier.url(host, path), headers=headers, timeout=20, **arguments)
        for line in answer.headers.get_list("set-cookie"):
            name, value = line.split(";", 1)[0].split("=", 1)
            self.cookies[name] = value
        return answer

    def get(self, host: str, path: str) -> httpx.Response:
        return self.request("GET", host, path)

    def login(self, page_from: str, post_to: str) -> httpx.Response:
        page = self.get(page_from, "/accounts/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert token, page.text[:500]
        form = {"csrfmiddlewaretoken": token[1], "username": USER, "password": PASSWORD}
        return self.request("POST", post_to, "/accounts/login/", data=form)

    def is_logged_in(self, host: str) -> bool:
        answer = self.get(host, "/admin/")
        assert answer.status_code in (200, 302), f"{answer.status_code}: {answer.text[:500]}"
        return answer.status_code == 200


class Tier:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.address = {host: lab.address(host) for host in HOSTS}

    def url(self, host: str, path: str) -> str:
        return f"http://{self.address[host]}:{PORT}{path}"

    def health(self, host: str, deep: bool = False, **headers: str) -> tuple[int, dict[str, Any]]:
        answer = httpx.get(self.url(host, "/-/health" + ("/deep" if deep else "")), headers=headers, timeout=20)
        return answer.status_code, answer.json()

    def release(self, host: str) -> str:
        return self.lab.ssh(host, "basename $(readlink /srv/django/current)").strip()

    def make_user(self) -> None:
        self.lab.manage(
            "app1",
            "from django.contrib.auth.models import User\n"
            f"user, _ = User.objects.get_or_create(username={USER!r}, is_staff=True, is_superuser=True)\n"
            f"user.set_password({PASSWORD!r})\nuser.save()\n",
        )

    def secrets(self) -> dict[str, str]:
        return {
            path.name: path.read_text(encoding="utf-8").strip()
            for path in (self.lab.directory / "secrets").iterdir()
            if path.is_file()
        }

    def runtime(self, host: str, release: str, *options: str, **more: Any) -> dict[str, Any]:
        """The result of the module django_runtime, run on a host as the role runs it."""
        units = ["django.service", "django-worker.service", *(["django-beat.service"] if host == "app1" else [])]
        arguments = {
            "release": release,
            "units": units,
            "stray_units": "django-*.service",
            "restart_on": ["/etc/django/environment"],
            "health_address": self.address[host],
            "health_port": PORT,
            "start_timeout": 8,
            **more,
        }
        command = [str(ROOT / ".venv/bin/ansible"), "-i", str(self.lab.inventory), host, "-o"]
        command += ["-m", "flotilla.django.django_runtime", "-a", json.dumps(arguments), *options]
        output = self.lab._run(command, check=False)
        result: dict[str, Any] = json.loads(output.split("=>", 1)[1])
        return result
