# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of a running lab share: its hosts, its playbooks, its balancer, and a browser without a screen."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.load.load import Load

ROOT = Path(__file__).resolve().parents[1]
DOMAIN = "flotilla.test"

# The variables that nobody but the daemons may read.
SECRETS = [
    "cluster_database_password",
    "cluster_redis_password",
    "django_secret_key",
    "haproxy_stats_password",
    "haproxy_tls_key",
    "postgresql_replication_password",
    "redis_admin_password",
    "redis_replication_password",
    "redis_sentinel_password",
    "cluster_redis_monitoring_password",
    "prometheus_password",
]

# The password of the users that tests make in the example site.
PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Recap:
    """What one ansible-playbook run said, and its PLAY RECAP as numbers."""

    returncode: int
    output: str
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def changed(self) -> dict[str, int]:
        return {host: counts["changed"] for host, counts in self.hosts.items() if counts["changed"]}

    @property
    def changed_tasks(self) -> list[str]:
        """The tasks that changed something, with the host: what a failing test shows."""
        found, task = [], ""
        for line in self.output.splitlines():
            if match := re.match(r"TASK \[(.*)\]", line):
                task = match[1]
            elif match := re.match(r"changed: \[([^\]]+)\]", line):
                found.append(f"{match[1]}: {task}")
        return found


class Background:
    """An ansible-playbook run that goes on while a test does something to the hosts, or to it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self._ended: str | None = None

    @property
    def output(self) -> str:
        return self._log.read_text() if self._ended is None else self._ended

    def end(self) -> None:
        """Wait for its end, and keep what it said: the file goes."""
        self._process.wait()
        self._ended = self._log.read_text()

    @property
    def returncode(self) -> int:
        """Waits until it has ended."""
        return self._process.wait()

    def wait_for(self, text: str, times: int = 1, timeout: float = 300) -> None:
        """Until a text stands in its output so many times."""

        def there() -> bool:
            assert self._process.poll() is None or self.output.count(text) >= times, self.output[-3000:]
            return self.output.count(text) >= times

        wait_until(there, timeout, f"the playbook comes to: {text}", 0.02)

    def kill(self) -> None:
        """As a controller that loses its power: with all its processes and without a word."""
        # Ansible's workers are leaders of sessions of their own: the group does not hold them.
        for pid in [self._process.pid, *_descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    children = [child for child, parent in parents.items() if parent == pid]
    return children + [further for child in children for further in _descendants(child)]


def inventory_with(directory: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a lab's inventory, changed: `change` gets its groups."""
    hosts = yaml.safe_load((ROOT / "inventories" / name / "hosts.yml").read_text())
    change(hosts["all"]["children"])
    (directory / "hosts.yml").write_text(yaml.safe_dump(hosts, sort_keys=False))
    # The group variables find the lab's directory and the example from the inventory's own place.
    (directory / "names.py").symlink_to(ROOT / "inventories/lab/names.py")
    target = directory / "group_vars" / "all"
    target.mkdir(parents=True)
    for file in (ROOT / "inventories" / name / "group_vars/all").glob("*.yml"):
        (target / file.name).write_text(file.read_text().replace("{{ inventory_dir }}/../..", str(ROOT)))
    return directory


class Lab:
    """One lab, by its name and inventory."""

    def __init__(self, name: str, inventory: str = "lab") -> None:
        self.name = name
        self.inventory = ROOT / "inventories" / inventory
        self.directory = ROOT / ".lab" if name == "lab" else ROOT / ".lab" / name
        self.certificate = self.directory / "tls" / "ca.pem"
        self.environment = {
            **os.environ,
            "LAB_NAME": name,
            "LAB_INVENTORY": str(self.inventory),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }

    def tool(self, *arguments: str) -> str:
        """lab/lab: kill, start, pause, cut ... a host."""
        return self._run([str(ROOT / "lab" / "lab"), *arguments])

    def ssh(self, host: str, command: str, stdin: str = "", check: bool = True) -> str:
        return self._run(["ssh", "-F", str(self.directory / "ssh_config"), host, command], stdin, check)

    def playbook(
        self, *arguments: str, inventory: Path | None = None, playbook: str = "site.yml", elsewhere: bool = False
    ) -> Recap:
        """Run a playbook of the project against this lab.

        elsewhere: as if Ansible and each host had processors of their own, as in production. Ansible gets one only
        while no host wants it; and of the hosts that it asks, no more are at work at once than there are processors,
        because what one of them does would make the others' requests wait, which share them.
        """
        command = [
            *(("chrt", "--idle", "0") if elsewhere else ()),
            str(ROOT / ".venv/bin/ansible-playbook"),
            "-i",
            str(inventory or self.inventory),
            playbook,
            *arguments,
        ]
        forks = {"ANSIBLE_FORKS": str(os.cpu_count() or 1)} if elsewhere else {}
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment | forks, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        hosts = {
            match[1]: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[2])}
            for match in re.finditer(r"^(\S+)\s+: (ok=\d+.*)$", done.stdout, re.MULTILINE)
        }
        return Recap(done.returncode, done.stdout, hosts)

    @contextlib.contextmanager
    def background(self, *arguments: str, playbook: str) -> Iterator[Background]:
        """Run a playbook during the block, and wait for its end behind it."""
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(self.inventory), playbook, *arguments]
        with tempfile.NamedTemporaryFile() as log, subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        ) as process:  # fmt: skip
            running = Background(process, Path(log.name))
            try:
                yield running
            except BaseException:
                running.kill()
                raise
            running.end()

    def variable(self, host: str, name: str) -> Any:
        """A variable of the inventory as the playbooks see it."""
        ansible = str(ROOT / ".venv/bin/ansible")
        output = self._run(
            [
                ansible,
                "-i",
                str(self.inventory),
                host,
                "-c",
                "local",
                "-m",
                "ansible.builtin.debug",
                "-a",
                f"var={name}",
            ],
            environment={"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        )
        return json.loads(output.split("=>", 1)[1])[name]

    def address(self, host: str) -> str:
        output = self._run(["ssh", "-G", "-F", str(self.directory / "ssh_config"), host])
        return next(line.split()[1] for line in output.splitlines() if line.startswith("hostname "))

    def shared_address(self) -> str:
        """The address that the balancers share: the tenth of the lab's network."""
        host = re.search(r"HostName (\S+)", (self.directory / "ssh_config").read_text())
        assert host, "the lab has no hosts"
        return host[1].rsplit(".", 1)[0] + ".10"

    def sql(self, host: str, query: str, database: str = "postgres") -> str:
        """Ask one PostgreSQL server as its superuser; one value, or the rows with | between the columns."""
        return self.ssh(host, f"runuser -u postgres -- psql -qAtX -v ON_ERROR_STOP=1 {database}", query).strip()

    def manage(self, host: str, python: str) -> str:
        """Run Python inside the project on one node."""
        return self.ssh(host, "django-manage shell", python)

    def make_user(self, name: str) -> str:
        """A user of the example site, whose password is PASSWORD and who may do everything."""
        self.manage(
            "app1",
            "from django.contrib.auth import get_user_model\n"
            f"user, _ = get_user_model().objects.get_or_create(username={name!r}, is_staff=True, is_superuser=True)\n"
            f"user.set_password({PASSWORD!r})\n"
            "user.save()\n",
        )
        return name

    def load(self, user: str = "", **arguments: Any) -> Load:
        """A load on the cluster at the address that its balancers share, for tests.load.load.running()."""
        return Load(
            f"https://{DOMAIN}",
            user=user,
            password=PASSWORD if user else "",
            **{"address": self.shared_address(), "ca": str(self.certificate), **arguments},
        )

    def _run(
        self, command: list[str], stdin: str = "", check: bool = True, environment: dict[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **(environment or {})},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


class Browser:
    """A client with cookies that reaches a host by its name, or an address, under the cluster's name."""

    def __init__(self, lab: Lab, host: str, port: int = 443, timeout: float = 20) -> None:
        scheme = "https" if port == 443 else "http"
        self.client = httpx.Client(
            base_url=f"{scheme}://{lab.address(host)}:{port}",
            headers={"Host": DOMAIN, "Referer": f"https://{DOMAIN}/"},
            verify=ssl.create_default_context(cafile=str(lab.certificate)),
            timeout=timeout,
        )

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return self.client.request(method, path, extensions={"sni_hostname": DOMAIN}, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def post_form(self, path: str, data: dict[str, str], **arguments: Any) -> httpx.Response:
        """Fetch the page for its CSRF cookie, then send the form."""
        page = self.get(path, **arguments)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert token, f"{path} has no form: {page.status_code}\n{page.text[:500]}"
        return self.request("POST", path, data={"csrfmiddlewaretoken": token[1], **data}, **arguments)

    def login(self, username: str, password: str, path: str = "/accounts/login/", **arguments: Any) -> None:
        answer = self.post_form(path, {"username": username, "password": password}, **arguments)
        assert answer.status_code == 302, f"login answered {answer.status_code}:\n{answer.text[:500]}"

    def where(self, **arguments: Any) -> dict[str, Any]:
        """The example site's page that tells which node answered."""
        answer = self.get("/where/?format=json", **arguments)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:500]}"
        return answer.json()


def served(lab: Lab) -> set[str]:
    """The nodes that answer. A node that has just joined gets its full share only after HAProxy's slow start."""
    browser = Browser(lab, lab.shared_address())
    return {browser.get("/plain/").headers["X-Served-By"] for _ in range(120)}


def wait_until(condition: Callable[[], Any], timeout: float, what: str, interval: float = 0.25) -> Any:
    """Wait until a condition holds, and return what it said; an exception counts as not yet."""
    deadline = time.monotonic() + timeout
    last: object = None
    while time.monotonic() < deadline:
        try:
            if last := condition():
                return last
        except Exception as error:
            last = error
        time.sleep(interval)
    raise AssertionError(f"not within {timeout} s: {what}; last: {last!r}")


@contextlib.contextmanager
def broken(lab: Lab, break_it: tuple[str, ...], mend_it: tuple[str, ...]) -> Iterator[None]:
    """A fault for the length of a with block; always mended."""
    lab.tool(*break_it)
    try:
        yield
    finally:
        lab.tool(*mend_it)
