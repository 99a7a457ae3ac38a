# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer between real clients and servers that say what they got."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import threading
import time
from collections import Counter

import pytest
from balancer import (
    ADDRESSES,
    APPS,
    BALANCER,
    CONTEXT,
    DOMAIN,
    LAB,
    Client,
    Load,
    admin,
    all_up,
    ask,
    converge,
    lab,
    on,
    servers,
    wait_for,
)


def spread(count: int) -> Counter[str]:
    return Counter(ask().server for _ in range(count))


# --- spreading -------------------------------------------------------------------------------------------------------


def test_round_robin_is_even() -> None:
    counts = spread(150)
    assert set(counts) == set(APPS)
    assert max(counts.values()) - min(counts.values()) <= 2, counts


def test_weights_give_their_share(restored: None) -> None:
    converge(scenario_weights={"app1": 1, "app2": 2, "app3": 3})
    counts = spread(300)
    for name, share in {"app1": 50, "app2": 100, "app3": 150}.items():
        assert abs(counts[name] - share) <= 0.05 * share, counts


def test_leastconn_prefers_the_idle_server(restored: None) -> None:
    converge(haproxy_balance="leastconn")
    busy: list[str] = []
    slow = [threading.Thread(target=lambda: busy.append(ask("/slow?4").server)) for _ in range(2)]
    for thread in slow:
        thread.start()
    wait_for("two slow requests are under way", lambda: sum(int(row["scur"]) for row in servers().values()) == 2, 3)
    counts = spread(30)
    for thread in slow:
        thread.join()
    assert len(set(busy)) == 2
    assert counts == {(set(APPS) - set(busy)).pop(): 30}


def test_cookie_keeps_a_client(restored: None) -> None:
    converge(haproxy_persistence="cookie")
    clients: Counter[str] = Counter()
    for _ in range(6):
        first = ask()
        cookie = first.headers["Set-Cookie"]
        assert re.fullmatch(r"node=app[123]; path=/; HttpOnly; Secure; SameSite=Lax", cookie), cookie
        value = cookie.split(";")[0]
        assert {ask(headers={"Cookie": value}).server for _ in range(5)} == {first.server}
        clients[first.server] += 1
    assert clients == {"app1": 2, "app2": 2, "app3": 2}
    on("app2", "systemctl stop backend")
    try:
        answer = ask(headers={"Cookie": "node=app2"})
        assert answer.status == 200
        assert answer.server in ("app1", "app3")
    finally:
        on("app2", "systemctl start backend")


def test_static_path_goes_to_the_static_server() -> None:
    assert ask("/static/site.css").json["server"] == "static1"
    assert ask("/staticfile").json["server"] in APPS


# --- what passes and what does not -----------------------------------------------------------------------------------


def test_forged_headers_are_replaced() -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Protocol": "http",
        "x-forwarded-ssl": "off",
        "Forwarded": "for=6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "X-Request-ID": "mine",
        "X_Forwarded_For": "6.6.6.6",
        "X_Forwarded-Proto": "http",
        "X-Harmless": "stays",
    }
    answer = ask("/forged", headers=forged)
    source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    source.connect((BALANCER, 443))
    mine = source.getsockname()[0]
    assert answer.sent("X-Forwarded-For") == [mine]
    assert answer.sent("X-Real-IP") == [mine]
    assert answer.sent("X-Forwarded-Proto") == ["https"]
    assert answer.sent("X-Forwarded-Host") == [DOMAIN]
    assert answer.sent("X-Forwarded-Port") == ["443"]
    assert answer.sent("X-Harmless") == ["stays"]
    for gone in ("Forwarded", "X-Forwarded-Protocol", "X-Forwarded-Ssl", "X_Forwarded_For", "X_Forwarded-Proto"):
        assert answer.sent(gone) == [], gone
    assert answer.sent("X-Request-ID") == [answer.headers["X-Request-ID"]]
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/-/health", "/-/deep?x", "/%2d/health", "/-%2Fhealth"])
def test_health_is_refused_from_outside(path: str) -> None:
    answer = ask(path)
    assert answer.status == 404
    assert answer.server == "", "a server was asked"


def test_health_is_refused_with_an_absolute_address() -> None:
    assert ask(f"https://{DOMAIN}/-/health").status == 404


def test_http_redirects_and_keeps_method_and_path() -> None:
    answer = ask("/a/b?c=d", tls=False, method="POST", body="x")
    assert answer.status == 308
    assert answer.headers["Location"] == f"https://{DOMAIN}/a/b?c=d"


def test_http_2() -> None:
    command = f"curl -sk --resolve {DOMAIN}:443:{BALANCER} -o /dev/null -w '%{{http_version}} %{{http_code}}' https://{DOMAIN}/"
    assert on("app1", command) == "2 200"


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_tls_versions(version: ssl.TLSVersion, accepted: bool) -> None:
    context = ssl.create_default_context(cafile=str(LAB / "tls" / "ca.pem"))
    # The client itself would refuse to speak the old one.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((BALANCER, 443), timeout=5) as plain:
        if accepted:
            with context.wrap_socket(plain, server_hostname=DOMAIN) as secure:
                assert "GCM" in secure.cipher()[0] or "CHACHA20" in secure.cipher()[0]
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert|protocol"):
                context.wrap_socket(plain, server_hostname=DOMAIN)


@pytest.mark.parametrize(
    "request_text",
    [
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\nContent-Length: +5\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\nX Y: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\nX: " + "y" * 17000 + "\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: flotilla.test\r\n" + "".join(f"X-{n}: y\r\n" for n in range(120)) + "\r\n",
    ],
    ids=["two lengths", "strange length", "two hosts", "blank in a name", "too large", "too many"],
)
def test_ambiguous_requests_are_refused(request_text: str) -> None:
    with CONTEXT.wrap_socket(socket.create_connection((BALANCER, 443), timeout=5), server_hostname=DOMAIN) as client:
        client.sendall(request_text.encode())
        assert re.match(rb"HTTP/1.[01] 400 ", client.recv(200))


def test_length_and_chunks_together_cannot_hide_a_second_request() -> None:
    """The balancer decides for the chunks, tells the server nothing else, and closes."""
    smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: flotilla.test\r\n\r\n"
    text = (
        f"POST /te HTTP/1.1\r\nHost: flotilla.test\r\nContent-Length: {len(smuggled)}\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{smuggled}"
    )
    with CONTEXT.wrap_socket(socket.create_connection((BALANCER, 443), timeout=5), server_hostname=DOMAIN) as client:
        client.sendall(text.encode())
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"/smuggled" not in answer


# --- failures --------------------------------------------------------------------------------------------------------


def test_only_safe_requests_are_repeated() -> None:
    def seen(path: str) -> int:
        """How often the servers were asked for it; /seen does not count."""
        return sum(int(on(name, f"curl -s http://localhost:8000/seen?{path}")) for name in APPS)

    posted, got = f"/once/post-{time.time()}", f"/once/get-{time.time()}"
    assert ask(posted, method="POST", body="x").status == 502
    assert seen(posted) == 1
    # Each of the three servers closes once, and then the one that is asked last again answers.
    assert ask(got).status == 200
    assert seen(got) == 4


def test_killed_server_costs_nothing_but_what_was_in_flight() -> None:
    with Load(rate=60).running() as load:
        time.sleep(1)
        on("app2", "systemctl kill --signal=KILL backend")
        wait_for("app2 is out", lambda: servers()["app2"]["status"] == "DOWN", 6)
        time.sleep(1)
        on("app2", "systemctl reset-failed backend; systemctl start backend")
        wait_for("app2 is back", all_up, 6)
        back = time.monotonic()
        time.sleep(1)
    # Requests take some milliseconds, so that at most one or two can have been on the server.
    assert len(load.failures) <= 1, load.failures
    assert len(load.answers) > 200
    assert Counter(name for start, name in load.answers if start > back)["app2"] > 10


def test_frozen_host_costs_nothing_but_what_was_in_flight() -> None:
    with Load(rate=20, timeout=3).running() as load:
        time.sleep(1)
        lab("pause", "app3")
        frozen = time.monotonic()
        try:
            wait_for("app3 is out", lambda: servers()["app3"]["status"] == "DOWN", 12)
            out = time.monotonic()
            time.sleep(2)
        finally:
            lab("unpause", "app3")
        wait_for("app3 is back", all_up)
    late = [failure for failure in load.failures if failure[0] > out]
    assert not late, late
    # A third of the requests of that time hang on it; the others must not.
    assert len(load.failures) <= (out - frozen) * 20 / 3 + 2, load.failures
    assert out - frozen < 10


def test_cut_off_host_costs_nothing() -> None:
    with Load(rate=20, timeout=5).running() as load:
        time.sleep(1)
        lab("cut", "app1")
        try:
            wait_for("app1 is out", lambda: servers()["app1"]["status"] == "DOWN", 12)
            time.sleep(1)
        finally:
            lab("heal", "app1")
        wait_for("app1 is back", all_up)
    # New connections to it fail after haproxy_timeout_connect and go elsewhere; only what was on an old one can hang.
    assert len(load.failures) <= 1, load.failures


def test_page_when_nothing_answers() -> None:
    for name in APPS:
        on(name, "systemctl stop backend")
    try:
        wait_for("all servers are down", lambda: all(row["status"] == "DOWN" for row in servers().values()))
        answer = ask("/")
    finally:
        for name in APPS:
            on(name, "systemctl start backend")
    assert answer.status == 503
    assert "Back in a moment" in answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["X-Request-ID"]


# --- reloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True], ids=["new connections", "kept connections"])
def test_reload_under_load_loses_nothing(keep: bool) -> None:
    with Load(rate=60, keep=keep).running() as load:
        for _ in range(4):
            time.sleep(0.7)
            on("lb1", "systemctl reload haproxy")
        time.sleep(1)
    assert not load.failures, load.failures
    assert len(load.answers) > 100


def test_state_is_kept_over_a_reload_and_forgotten_by_a_restart() -> None:
    admin("set server django/app1 state drain")
    admin("set server django/app2 weight 7")
    assert "app1" not in spread(20)
    for _ in range(2):
        on("lb1", "systemctl reload haproxy")
        now = servers()
        assert now["app1"]["status"] == "DRAIN"
        assert now["app2"]["weight"] == "7"
        assert "app1" not in spread(20)
    on("lb1", "systemctl restart haproxy")
    wait_for("all servers are up", all_up)
    assert {name: row["weight"] for name, row in servers().items()} == {"app1": "1", "app2": "1", "app3": "1"}


def test_down_server_is_not_tried_after_a_reload() -> None:
    on("app3", "systemctl stop backend")
    try:
        wait_for("app3 is out", lambda: servers()["app3"]["status"] == "DOWN")
        on("lb1", "systemctl reload haproxy")
        assert servers()["app3"]["status"] == "DOWN"
    finally:
        on("app3", "systemctl start backend")


def test_changed_configuration_wins_over_the_kept_state(restored: None) -> None:
    admin("set server django/app1 state drain")
    admin("set server django/app2 weight 7")
    admin("set server django/app3 state drain")
    # app1 is another machine now, app2 has another weight; app3 is the same and stays drained.
    converge(scenario_addresses={"app1": ADDRESSES["app2"]}, scenario_weights={"app2": 3})
    now = servers()
    assert now["app1"]["status"].startswith("UP")
    assert now["app2"]["weight"] == "3"
    assert now["app3"]["status"] == "DRAIN"
    admin("set server django/app3 state ready")


def test_server_is_added_and_removed_without_a_failed_request(restored: None) -> None:
    converge(scenario_django=["app2", "app3"])
    assert set(servers()) == {"app2", "app3"}
    admin("set server django/app3 state drain")
    with Load(rate=30).running() as load:
        converge()
        assert servers()["app3"]["status"] == "DRAIN", "the numbers of the servers changed, their names did not"
        wait_for("app1 serves", lambda: any(name == "app1" for _, name in load.answers))
        admin("set server django/app3 state ready")
        converge(scenario_django=["app2", "app3"])
        gone = time.monotonic()
        time.sleep(1)
    assert not load.failures, load.failures
    assert "app1" not in {name for start, name in load.answers if start > gone}


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"haproxy_timeout_connect": "soon"}, "timeout connect"),
        ({"haproxy_tls_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"}, "site.pem"),
    ],
    ids=["bad value", "bad key"],
)
def test_invalid_configuration_never_replaces_the_running_one(variables: dict[str, str], complaint: str) -> None:
    before = on("lb1", "cat /etc/haproxy/*.cfg /etc/haproxy/certs/site.pem; systemctl show -p MainPID haproxy")
    result = converge(check=False, **variables)
    assert result.returncode != 0
    assert complaint in result.stdout
    assert on("lb1", "cat /etc/haproxy/*.cfg /etc/haproxy/certs/site.pem; systemctl show -p MainPID haproxy") == before
    assert ask().status == 200
    on("lb1", "systemctl reload haproxy")


def test_reload_refuses_what_somebody_broke_by_hand() -> None:
    on("lb1", "cp -p /etc/haproxy/haproxy.cfg /root/keep; echo nonsense >>/etc/haproxy/haproxy.cfg")
    try:
        on("lb1", "! systemctl reload haproxy")
        assert ask().status == 200
    finally:
        on("lb1", "cp -p /root/keep /etc/haproxy/haproxy.cfg; rm /root/keep; systemctl reload haproxy")


# --- operation -------------------------------------------------------------------------------------------------------


def password() -> str:
    return (LAB / "secrets" / "stats_password").read_text().split()[0]


def private(port: int, path: str, user: str = "") -> tuple[int, str]:
    client = http.client.HTTPConnection(BALANCER, port, timeout=5)
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    client.request("GET", path, headers=headers)
    response = client.getresponse()
    return response.status, response.read().decode()


def test_statistics_need_the_password() -> None:
    assert private(8404, "/")[0] == 401
    assert private(8404, "/", "admin:admin")[0] == 401
    status, page = private(8404, "/", f"admin:{password()}")
    assert status == 200
    assert "app3" in page


def test_metrics() -> None:
    status, text = private(8405, "/metrics")
    assert status == 200
    assert 'haproxy_server_status{proxy="django",server="app1",state="UP"} 1' in text
    assert private(8405, "/")[0] == 404


def test_private_ports_are_not_on_every_address() -> None:
    listening = on("lb1", "ss -Hltn | awk '{print $4}'").split()
    for port in (8404, 8405):
        assert [address for address in listening if address.endswith(f":{port}")] == [f"{BALANCER}:{port}"]


def test_requests_are_in_the_journal_with_their_id() -> None:
    identity = ask("/logged").headers["X-Request-ID"]
    failed = ask("/-/logged").headers["X-Request-ID"]
    static = ask("/static/logged").headers["X-Request-ID"]

    def line(wanted: str) -> str:
        return on(
            "lb1", f"journalctl --since=-1min --no-pager -o cat SYSLOG_IDENTIFIER=haproxy | grep {wanted}", check=False
        )

    wait_for("the request is logged", lambda: line(identity), 5)
    assert re.search(r"https~ django/app\d \d+/0/\d+/\d+/\d+ 200 .*\"GET /logged HTTP/1.1\"", line(identity)), line(
        identity
    )
    assert line(failed)
    assert not line(static), "successful requests for static files are not worth a line"


def test_secrets_are_not_readable() -> None:
    modes = on("lb1", "stat -c '%a %U %n' /etc/haproxy/users.cfg /etc/haproxy/certs /etc/haproxy/certs/site.pem")
    assert modes.split("\n")[:3] == [
        "640 root /etc/haproxy/users.cfg",
        "700 root /etc/haproxy/certs",
        "600 root /etc/haproxy/certs/site.pem",
    ]
    key = (LAB / "tls" / "flotilla.test.key").read_text().splitlines()[1]
    for secret in (password(), key):
        # The brackets keep grep from finding itself.
        pattern = f"[{secret[0]}]{secret[1:]}".replace("+", "[+]").replace(".", "[.]")
        assert on("lb1", f"ps auxe | grep '{pattern}'", check=False) == ""
        assert on("lb1", f"journalctl --no-pager | grep -c '{pattern}'", check=False).strip() == "0"


def test_admin_socket_is_for_root_and_the_group() -> None:
    assert on("lb1", "stat -c '%a %U %G' /run/haproxy/admin.sock").strip() == "660 root haproxy"
    on("lb1", "test -S /run/haproxy-master.sock")


def test_a_kept_connection_is_not_bound_to_a_server() -> None:
    client = Client()
    assert {client.ask("/").server for _ in range(6)} == set(APPS)
    client.close()
