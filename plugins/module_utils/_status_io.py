# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Read everything that one host knows about its share of the cluster. No decisions; each part has a time of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils._status_host_plan import certificate_end, mounts_of

# The other imports stand in the functions: a module is compiled anew at each run, and a host needs those of its tiers.

# Shares of a second that a socket which is not there is asked again.
CONNECT_TIMEOUT = 0.3
# Seconds less that a part has than all together, and that a request has than its part.
SPARE, SPARE_OF_PART = 0.5, 0.3
DRAINED = Path("/etc/keepalived/drained")
LOCK = Path("/var/lib/flotilla/deploy.json")
POSTGRESQL = Path("/usr/lib/postgresql")


class Patience:
    """The time that is left for all parts together; a part that hangs must not take the answers of the others along."""

    def __init__(self, seconds: float, part: float | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._part = seconds - SPARE if part is None else part

    @property
    def of_request(self) -> float:
        """Seconds for a request that nobody said more about."""
        return self._part - SPARE_OF_PART

    def read(self, reader: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a reader found, or why it found nothing."""
        seconds = min(self._part, self._end - time.monotonic())
        if seconds <= 0:
            return {"error": "was not asked: the parts before took all the time"}
        try:
            with alarm(seconds):
                return reader()
        except TimeoutError as error:
            return {"error": str(error) or f"no answer within {seconds:.1f} s"}
        except Exception as error:  # whatever it is, it is said, and the other parts are read all the same
            return {"error": str(error).strip() or type(error).__name__}


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupts what takes longer, whatever it waits for."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no answer within {seconds:.1f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def there(path: str) -> str:
    """A file's path, or nothing where there is none."""
    return path if Path(path).exists() else ""


# --- every host ------------------------------------------------------------------------------------------------------


def addresses() -> list[str]:
    """All addresses of this host, the shared ones among them."""
    links = json.loads(run("ip", "-json", "address", "show") or "[]")
    return sorted({str(item["local"]) for link in links for item in link["addr_info"] if "local" in item})


def disks() -> list[dict[str, Any]]:
    """Each file system of this host once, as full as its programs find it."""
    found: dict[int, dict[str, Any]] = {}
    for point in mounts_of(Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")):
        with contextlib.suppress(OSError):
            if not Path(point).is_dir():  # a container gets single files from outside
                continue
            device, seen = Path(point).stat().st_dev, os.statvfs(point)
            if seen.f_blocks and device not in found:
                reachable = seen.f_blocks - seen.f_bfree + seen.f_bavail
                found[device] = {
                    "mount": point,
                    "used_percent": round(100 * (1 - seen.f_bavail / reachable)) if reachable else 100,
                    "free_bytes": seen.f_bavail * seen.f_frsize,
                    "inodes_percent": round(100 * (1 - seen.f_favail / seen.f_files)) if seen.f_files else 0,
                }
    return list(found.values())


def units(names: Sequence[str]) -> dict[str, str]:
    """The state of each unit: active, inactive, failed, activating ..."""
    shown = run("systemctl", "show", "-P", "ActiveState", *names).split() if names else []
    return {name: shown[number] if number < len(shown) else "unknown" for number, name in enumerate(names)}


def read_host(names: Sequence[str]) -> dict[str, Any]:
    return {"now": time.time(), "addresses": addresses(), "disks": disks(), "units": units(names)}


# --- the tiers -------------------------------------------------------------------------------------------------------


def read_haproxy(params: Mapping[str, Any]) -> dict[str, Any]:
    from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_io as haproxy_io
    from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_plan as haproxy_plan

    balancer = haproxy_io.balancers([params["socket"]], CONNECT_TIMEOUT)[0]
    haproxy_io.attach_master([balancer], params["master_socket"])
    now = balancer.read(True)
    return {
        "version": now.process.version,
        "uptime": now.process.uptime,
        "servers": [
            {**haproxy_plan.describe_server(server), "sessions": now.sessions(key)}
            for key, server in now.servers.items()
        ],
        "frontends": [haproxy_plan.describe_frontend(row) for row in balancer.frontends()],
        "certificates": certificates(balancer.endpoint.ask),
        "drained": DRAINED.exists() and DRAINED.read_text(encoding="ascii").strip() == "1",
    }


def certificates(ask: Callable[[Sequence[str]], list[str]]) -> list[dict[str, Any]]:
    """What HAProxy itself says about the certificates that it serves: a file on the disk may be another one."""
    listed = ask(["show ssl cert"])[0]
    paths = [line.strip() for line in listed.splitlines() if line.startswith("/")]
    shown = [ask([f"show ssl cert {path}"])[0] for path in paths]
    return [{"path": path, "ends": certificate_end(text)} for path, text in zip(paths, shown, strict=True)]


def still(ask: Callable[[], tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
    """How a node is; asked once more when it is not well, because many asked at once keep the database busy."""
    first = ask()
    if first[0] == HTTPStatus.OK:
        return first
    with contextlib.suppress(TimeoutError):  # no time is left for this part
        second = ask()
        if second[0] == HTTPStatus.OK:
            return second
    return first


def read_django(params: Mapping[str, Any]) -> dict[str, Any]:
    from ansible_collections.flotilla.django.plugins.module_utils import _django_node_io as node_io
    from ansible_collections.flotilla.django.plugins.module_utils._django_node_plan import parse_show
    from ansible_collections.flotilla.django.plugins.module_utils._health_io import ask

    names = ["django.service", *sorted(path.name for path in node_io.UNIT_DIRECTORY.glob("django-*.service"))]
    shown = parse_show(run("systemctl", "show", "-p", "Id,ActiveState,MainPID", *names))
    pid = int(shown.get("django.service", {}).get("MainPID") or 0)
    release = node_io.running_release(pid, params["home"])
    path = f"{params['health_path']}/deep"
    status, body = still(
        lambda: ask(params["address"], params["port"], path, params["timeout"], there(params["ca_file"]))
    )
    return {
        "units": {name: shown.get(name, {}).get("ActiveState", "inactive") for name in names},
        "release": release,
        "current": node_io.linked(params["home"], "current"),
        "previous": node_io.linked(params["home"], "previous"),
        "workers": node_io.workers(pid) if release else 0,
        "health": {**body, "status": status},
        "lock": json.loads(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {},
    }


def read_nginx(params: Mapping[str, Any]) -> dict[str, Any]:
    from ansible_collections.flotilla.django.plugins.module_utils._health_io import ask

    status, body = ask(params["address"], params["port"], params["health_path"], params["timeout"])
    return {"health": {**body, "status": status}}


def read_postgresql(params: Mapping[str, Any]) -> dict[str, Any]:
    """The newest version that is installed: Debian's release has one."""
    from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as postgresql_io

    versions = [int(path.parts[-3]) for path in POSTGRESQL.glob("*/bin/postgres") if path.parts[-3].isdecimal()]
    if not versions:
        return {"error": "PostgreSQL is not installed"}
    cluster = postgresql_io.Cluster(max(versions), params["cluster"], None, params["port"], params["socket_directory"])
    node = postgresql_io.read_node(cluster)
    node["max_connections"] = None
    if node["accepting"]:
        with postgresql_io.connect(cluster) as connection:
            row = connection.execute("SELECT current_setting('max_connections')::int AS number").fetchone()
            node["max_connections"] = row["number"]
    return node


def read_redis(params: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
    from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan

    own = {"name": params["name"], "address": params["address"]}
    login = (
        params["user"],
        params["password"],
        params["timeout"],
        redis_io.tls_of(there(params["ca_file"]), plain_too=False),
    )
    node = redis_io.ask(own, params["port"], *login)
    found = {**asdict(node), "memory_bytes": None, "memory_limit_bytes": None, "sentinel": {}}
    if node.state == redis_plan.UP:
        with redis_io.Client(own["address"], params["port"], *login) as client:
            memory = redis_plan.parse_info(client.call("INFO", "memory"))
        found["memory_bytes"] = int(memory.get("used_memory") or 0)
        found["memory_limit_bytes"] = int(memory.get("maxmemory") or 0)
    if params["sentinel_port"]:
        found["sentinel"] = read_sentinel(own, params["sentinel_port"], login)
    return found


def read_sentinel(own: Mapping[str, str], port: int, login: Any) -> dict[str, Any]:
    from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
    from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
    from ansible_collections.flotilla.django.plugins.module_utils._redis_sentinel_plan import WATCHED

    sentinel = sentinel_io.ask(own, port, *login)
    found = {
        "state": sentinel.state,
        "detail": sentinel.detail,
        "master_address": sentinel.master_address,
        "flags": list(sentinel.flags),
        "others": sorted(peer.address for peer in sentinel.peers),
        "quorum": "",
    }
    if sentinel.watches:
        with redis_io.Client(own["address"], port, *login) as client:
            try:
                found["quorum"] = str(client.call("SENTINEL", "CKQUORUM", WATCHED))
            except redis_io.ReplyError as error:
                found["quorum"] = str(error)
    return found


def read_prometheus(params: Mapping[str, Any]) -> dict[str, Any]:
    """What Alertmanager would tell somebody, or where there is none, what Prometheus finds."""
    url, source = params["alertmanager_url"], "alertmanager"
    query = "/api/v2/alerts?active=true&silenced=false&inhibited=false&unprocessed=true"
    try:
        alerts = _json(url.rstrip("/") + query, params["timeout"])
    except (OSError, ValueError) as error:
        url, source = params["prometheus_url"], "prometheus"
        alerts = _json(url.rstrip("/") + "/api/v1/alerts", params["timeout"])["data"]["alerts"]
        return {"source": source, "alerts": alerts, "problem": f"Alertmanager does not answer: {error}"}
    return {"source": source, "alerts": alerts, "problem": ""}


def _json(url: str, timeout: float) -> Any:
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no http address")
    # No proxy: what is asked stands on this host, or beside it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout) as answer:
        return json.load(answer)


READERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "haproxy": read_haproxy,
    "django": read_django,
    "redis": read_redis,
    "postgresql": read_postgresql,
    "nginx_static": read_nginx,
    "prometheus": read_prometheus,
}


def read(tiers: Mapping[str, Mapping[str, Any]], patience: Patience) -> dict[str, Any]:
    """All parts of this host, by tier, and the host itself."""
    names = [name for options in tiers.values() for name in options.get("units", [])]
    found = {"host": patience.read(lambda: read_host(names))}
    for tier, options in tiers.items():
        timed = {**options, "timeout": options.get("timeout") or patience.of_request}
        found[tier] = patience.read(lambda tier=tier, timed=timed: READERS[tier](timed))  # type: ignore[misc]
    return found
