# SPDX-License-Identifier: GPL-3.0-or-later
"""Every alert fires for real when its cause is made, after its own time, and is over when the cause is gone.

The causes of a part are made at the same time, because the longest alert wants a quarter of an hour. test_2_tells.py
lets a host die, and an exporter. Not here, because it cannot be made on hosts that share a machine or not in this time:

- `ClockOff`: all hosts have the machine's clock.
- `DiskFull`, `InodesFull`: the hosts have no file system of their own.
- `OutOfMemory`: the hosts cannot limit the memory of a service, and the machine is to keep its own.
- `DiskFills`: wants to have watched the disk for two hours first.

Those are tried by tests/unit/test_prometheus_alerts.py.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import time
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from monitor import HOST, Monitor, primary

from tests.cluster import DOMAIN, Browser, Lab, wait_until
from tests.load.load import running

pytestmark = pytest.mark.full

ADMIN = "REDISCLI_AUTH={password} redis-cli --user admin"
TEXTFILES = "/var/lib/prometheus/node-exporter"
CONNECTIONS = 185  # of 200
QUIET_SECONDS = 600.0


class Cause(contextlib.ExitStack):
    """What is broken, undone in the reverse order; each line of `undo` is run in any case."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab

    def on(self, host: str, do: str, undo: str, stdin: str = "") -> None:
        self.callback(self.lab.ssh, host, undo, check=False)
        self.lab.ssh(host, do, stdin)

    def stop(self, host: str, *units: str) -> None:
        names = " ".join(units)
        self.on(host, f"systemctl stop {names}", f"systemctl start {names}")

    def site(self, *arguments: str) -> None:
        """site.yml with other variables, and as it was at the end."""
        tags = arguments[:2]
        self.callback(self.lab.playbook, *tags)
        run = self.lab.playbook(*arguments)
        assert run.returncode == 0, run.output[-3000:]


def redis(lab: Lab, host: str, command: str, port: int = 6379) -> str:
    password = shlex.quote(str(lab.variable(host, "redis_admin_password")))
    return f"{ADMIN.format(password=password)} -p {port} {command}"


def master(lab: Lab) -> tuple[str, str]:
    """Redis' master and its replica."""
    first = "data1" if "role:master" in lab.ssh("data1", redis(lab, "data1", "INFO replication")) else "data2"
    return first, "data2" if first == "data1" else "data1"


def short_certificate(lab: Lab) -> str:
    """A certificate of the lab's own authority for two days, with its key."""
    authority = x509.load_pem_x509_certificate((lab.directory / "tls/ca.pem").read_bytes())
    passphrase = (lab.directory / "secrets/ca_passphrase").read_bytes().strip()
    authority_key = serialization.load_pem_private_key((lab.directory / "tls/ca.key").read_bytes(), passphrase)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DOMAIN)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(DOMAIN)]), critical=False)
        .sign(authority_key, hashes.SHA256())  # type: ignore[arg-type]  # the lab's is no key for an exchange
    )
    kept = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return (
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, *kept)
    ).decode()  # fmt: skip


def with_certificate(lab: Lab, cause: Cause) -> None:
    """HAProxy serves the short certificate; a reload reads its files again."""
    pem = short_certificate(lab)
    program = (
        "import socket, sys\n"
        "def ask(text):\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); s.sendall(text.encode())\n"
        "    s.shutdown(socket.SHUT_WR); said = b''\n"
        "    while part := s.recv(65536): said += part\n"
        "    return said.decode()\n"
        "name = next(l for l in ask('show ssl cert\\n').splitlines() if l.startswith('/'))\n"
        "print(ask(f'set ssl cert {name} <<\\n{sys.stdin.read().strip()}\\n\\n'), ask(f'commit ssl cert {name}\\n'))\n"
    )
    for host in ("web1", "web2"):
        cause.on(host, f"python3 -c {shlex.quote(program)}", "systemctl reload haproxy", pem)


def other_release(lab: Lab, cause: Cause) -> None:
    """web2 runs another release, as after a deploy that was interrupted."""
    release = lab.ssh("web2", "basename $(readlink /srv/django/current)").strip()
    cause.on(
        "web2",
        f"cd /srv/django/releases && cp -a --reflink=auto {release} other"
        f" && sed -i 's/{release}/other/g' other/release.json"
        " && ln -sfn releases/other ../current && systemctl restart django",
        f"ln -sfn releases/{release} /srv/django/current; systemctl restart django; rm -rf /srv/django/releases/other",
    )


def full(lab: Lab, cause: Cause) -> None:
    """More slow requests than the nodes can take, but not more than the health checks can bear."""
    cause.site("--tags", "haproxy", "-e", json.dumps({"haproxy_django_maxconn": 6, "haproxy_timeout_queue": "60s"}))
    cause.enter_context(
        running(lab.load(rate=7, seconds=3000, mix={"slow": 1}, slow_seconds=2.6, deadline=70))
    )  # fmt: skip


def firing(monitor: Monitor) -> set[str]:
    """As Prometheus says: of two that say the same Alertmanager tells one."""
    alerts = monitor.get("/prometheus/api/v1/alerts")["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def wait_for(monitor: Monitor, names: Sequence[str], timeout: float) -> dict[str, float]:
    """Until all of them have fired: after how many seconds each did."""
    began, seen = time.monotonic(), {}

    def all_fired() -> bool:
        now = firing(monitor)
        for name in names:
            if name in now and name not in seen:
                seen[name] = time.monotonic() - began
                print(f"{name} fires after {seen[name]:.0f} s", flush=True)
        assert seen.keys() == set(names), f"not yet: {sorted(set(names) - seen.keys())}; now: {sorted(now)}"
        return True

    wait_until(all_fired, timeout, "all of them fire", 5)
    return seen


def wait_over(monitor: Monitor, timeout: float) -> None:
    def over() -> bool:
        now = firing(monitor) - {"Watchdog"}
        assert not now, sorted(now)
        return True

    wait_until(over, timeout, "all of them are over", 5)


def test_nothing_fires_in_ten_quiet_minutes_under_load_nor_in_a_deploy_and_a_switchover(
    lab: Lab, monitor: Monitor
) -> None:
    wait_over(monitor, 900)
    seen: set[str] = set()
    began = time.monotonic()
    _, replica = primary(lab)
    steps = [
        ("playbooks/deploy.yml", "-e", "django_version=quiet"),
        ("playbooks/switchover.yml", "-e", f"postgresql_new_primary={replica}"),
        ("playbooks/rollback.yml",),
    ]
    with running(lab.load(rate=20, seconds=QUIET_SECONDS + 600)):
        while time.monotonic() - began < QUIET_SECONDS or steps:
            if steps and time.monotonic() - began > 60:
                playbook, *arguments = steps.pop(0)
                run = lab.playbook(*arguments, playbook=playbook)
                assert run.returncode == 0, run.output[-3000:]
            seen |= set(monitor.firing())
            time.sleep(5)
    assert seen == {"Watchdog"}


def test_what_slowly_goes_wrong(lab: Lab, monitor: Monitor) -> None:
    first, replica = primary(lab)
    leader, follower = master(lab)
    expected = {
        "AlertsNotDelivered", "AnswersSlow", "BackupOld", "CertificateEndsNow", "CertificateEndsSoon",
        "DjangoMetricsOld", "ExporterDown", "MonitorRefusesItsConfiguration",
        "PostgresqlConnections", "PostgresqlLag", "RedisLinkDown", "RedisMemory", "RedisQuorumLost",
        "RedisRejectsConnections", "ReleasesDiffer", "RequestsQueue",
    }  # fmt: skip
    with Cause(lab) as cause:
        full(lab, cause)
        refused = {"prometheus_receiver": {"webhook_configs": [{"url": "http://127.0.0.1:9/"}]}}
        cause.site(
            "--tags", "prometheus", "--limit", HOST, "-e", json.dumps({**refused, "prometheus_group_seconds": 1})
        )
        other_release(lab, cause)
        with_certificate(lab, cause)
        cause.on(
            HOST,
            "echo 'no: {' >> /etc/prometheus/flotilla-rules/alerts.yml; systemctl reload prometheus",
            "sed -i '$d' /etc/prometheus/flotilla-rules/alerts.yml; systemctl reload prometheus",
        )
        cause.stop("web1", "flotilla-django-metrics.timer")
        cause.stop("web1", "prometheus-nginx-exporter")
        cause.on(
            "data1",
            f"echo 'flotilla_backup_last_success_timestamp_seconds 1' > {TEXTFILES}/backup.prom",
            f"rm {TEXTFILES}/backup.prom",
        )
        # The replica receives and does not replay; the table is twice the limit.
        cause.on(
            replica,
            "runuser -u postgres -- psql -c 'SELECT pg_wal_replay_pause()'",
            "runuser -u postgres -- psql -c 'SELECT pg_wal_replay_resume()'",
        )
        lab.sql(first, "CREATE TABLE lag AS SELECT repeat('x', 100) FROM generate_series(1, 1000000); DROP TABLE lag")
        cause.on(
            first,
            "systemd-run -q --unit many --uid postgres bash -c"
            f" 'for i in $(seq {CONNECTIONS}); do psql -qc \"SELECT pg_sleep(3000)\" >/dev/null & done; wait'",
            # Servers in the middle of a query do not notice that their client is gone.
            'systemctl stop many; runuser -u postgres -- psql -c "SELECT count(pg_terminate_backend(pid))'
            " FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3000)'\"",
        )
        # In small parts, until it refuses more: it counts what it is just being sent, too.
        fill = f"head -c 750000 /dev/urandom | base64 -w0 | {redis(lab, leader, '-x SET full$i')}"
        empty = redis(lab, leader, "DEL full$i")
        cause.on(leader, f"for i in $(seq 80); do {fill}; done", f"for i in $(seq 80); do {empty}; done")
        # More clients than it takes, for a moment.
        most = lab.ssh(follower, redis(lab, follower, "CONFIG GET maxclients")).split()[-1]
        lab.ssh(
            follower,
            redis(lab, follower, "CONFIG SET maxclients 40")
            + f"; bash -c 'for i in $(seq 80); do exec {{fd}}<>/dev/tcp/{lab.address(follower)}/6379; done; sleep 2';"
            + redis(lab, follower, f"CONFIG SET maxclients {most}"),
        )
        cause.on(follower, redis(lab, follower, "CONFIG SET masterauth wrong"), "systemctl restart redis-server")
        lab.ssh(leader, redis(lab, leader, "CLIENT KILL TYPE replica"))
        cause.stop(follower, "redis-sentinel")
        wait_for(monitor, sorted(expected), 1500)
    wait_over(monitor, 1500)


def test_what_goes_down(lab: Lab, monitor: Monitor) -> None:
    first, replica = primary(lab)
    version = lab.ssh(first, "ls /etc/postgresql").split()[0]
    with Cause(lab) as cause:
        for host in ("web1", "web2"):
            cause.stop(host, "keepalived")
            cause.stop(host, "django")
        cause.stop("web1", "nginx")
        for host in ("data1", "data2"):
            cause.stop(host, "redis-sentinel", "redis-server")
        cause.stop(replica, f"postgresql@{version}-main")
        cause.enter_context(running(lab.load(rate=5, seconds=2400, address=lab.address("web1"), mix={"plain": 1})))
        wait_for(
            monitor,
            [
                "BackendFewServers", "BackendWithoutServers", "DjangoWithoutWorkers", "ErrorsAnswered", "NodeUnhealthy",
                "PostgresqlDown", "PostgresqlReplicasMissing", "PostgresqlSlotInactive", "RedisDown",
                "RedisNotOneMaster", "ServerDown", "SharedAddressNotHeldOnce", "SiteDown",
            ],
            1200,
        )  # fmt: skip
        cause.stop(first, f"postgresql@{version}-main")
        wait_for(monitor, ["PostgresqlNotOnePrimary"], 300)
    wait_until(lambda: Browser(lab, "web1").get("/where/").status_code == 200, 120, "the site answers again", 2)
    wait_over(monitor, 1200)
