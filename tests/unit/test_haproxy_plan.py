# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions of haproxy_server, and reading what HAProxy says. The texts are HAProxy 2.6's and 3.0's own."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils._haproxy_plan import DRAIN, MAINT, READY, Server, Wish

STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord
3 django 1 w1 127.0.0.1 1 0 1 1 15 15 3 4 6 0 0 0 - 19001 -
3 django 2 w2 fd00::2 0 9 128 1 16 15 3 4 14 0 0 0 - 19002 -
4 plain 1 w1 127.0.0.1 2 0 1 1 2 1 0 2 0 0 0 0 - 19001 -
"""
STAT = """# pxname,svname,qcur,scur,status,type,check_status,last_chk,check_desc,used_conn_cur,
site,FRONTEND,,3,OPEN,0,,,,,
django,w1,2,1,UP,2,L7OK,,Layer7 check passed,4,
django,w2,0,0,MAINT,2,* L4CON,Connection refused,Layer4 connection problem,0,
django,BACKEND,0,1,UP,1,,,,,
"""


def server(name: str = "w1", **values: Any) -> Server:
    facts: dict[str, Any] = {
        "backend": "django",
        "address": "127.0.0.1",
        "port": 8000,
        "state": 2,
        "admin_mask": 0,
        "weight": 10,
        "initial_weight": 10,
        "check_mask": 6,
    }
    return Server(name=name, **{**facts, **values})


def by_key(*servers: Server) -> dict[plan.Key, Server]:
    return {one.key: one for one in servers}


def wish(**values: Any) -> Wish:
    return Wish(**{"servers": ("w1",), "state": DRAIN, **values})


# --- reading


def test_servers_are_read_from_masks_and_by_column_name() -> None:
    servers = plan.parse_servers(STATE, plan.parse_stat(STAT))
    one, two, plain = servers["django", "w1"], servers["django", "w2"], servers["plain", "w1"]
    assert (one.admin, one.operational, one.checked, one.sessions, one.queue) == (READY, "up", True, 4, 2)
    assert (two.admin, two.operational, two.address, two.port, two.weight) == (MAINT, "down", "fd00::2", 19002, 128)
    assert two.check_report == "L4CON: Layer4 connection problem: Connection refused"
    assert (plain.checked, plain.sessions, plain.check_report) == (False, 0, "no check yet")


@pytest.mark.parametrize(
    ("mask", "admin", "inherited"),
    [
        *((0, READY, ""), (1, MAINT, ""), (5, MAINT, ""), (4, READY, ""), (8, DRAIN, ""), (9, MAINT, "")),
        *((2, READY, MAINT), (32, READY, MAINT), (64, READY, MAINT), (16, READY, DRAIN), (10, DRAIN, MAINT)),
    ],
)
def test_administrative_masks(mask: int, admin: str, inherited: str) -> None:
    assert (server(admin_mask=mask).admin, server(admin_mask=mask).inherited) == (admin, inherited)


@pytest.mark.parametrize(
    ("values", "serving"),
    [({}, True), ({"state": 1}, True), ({"state": 0}, False), ({"state": 3}, False), ({"weight": 0}, False)]
    + [({"admin_mask": mask}, False) for mask in (1, 8, 2, 16)],
)
def test_who_serves(values: dict[str, Any], serving: bool) -> None:
    assert server(**values).is_serving is serving


@pytest.mark.parametrize(
    ("text", "count", "replies"),
    [
        ("\n", 1, [""]),
        ("\n\n", 2, ["", ""]),
        ("\nNo such server.\n\n\n", 3, ["", "No such server.", ""]),
        ("a\nb\n\nc\n\n", 2, ["a\nb", "c"]),
    ],
)
def test_replies_are_told_apart(text: str, count: int, replies: list[str]) -> None:
    assert plan.split_replies(text, count) == replies


@pytest.mark.parametrize(("text", "count"), [("", 1), ("\n", 2), ("# pxname,svname\ndjango,w", 1)])
def test_answers_that_are_cut_off(text: str, count: int) -> None:
    with pytest.raises(ValueError, match=r"cut off|answers came"):
        plan.split_replies(text, count)


@pytest.mark.parametrize("text", ["Permission denied\n", "", "2\n# x\n"])
def test_something_else_than_a_table(text: str) -> None:
    with pytest.raises(ValueError, match="show servers state"):
        plan.parse_servers(text, [])


def test_processes_of_the_master() -> None:
    text = (
        "#<PID>          <type>          <reloads>       <uptime>        <version>      \n"
        "31573           master          2 [failed: 0]   0d01h08m47s     2.6.12-1+deb12u4\n"
        "# workers\n18216           worker          0               0d00h00m02s     2.6.12-1+deb12u4\n"
        "# old workers\n17418           worker          1               0d00h03m08s     2.6.12-1+deb12u4\n"
        "17001           worker          2               0d00h09m08s     2.6.12-1+deb12u4\n# programs\n"
    )
    assert plan.parse_processes(text) == ([18216], [17418, 17001])
    assert plan.parse_processes("# workers\n") == ([], [])


def test_sessions_of_an_old_worker() -> None:
    assert plan.old_sessions(plan.parse_stat(STAT)) == {("django", "w1"): 4, ("django", "w2"): 0}
    sessions = (
        "0x55ef4918bb50: proto=tcpv4 src=127.0.0.1:33512 fe=f be=django srv=w1 ts=00 epoch=0 age=1s\n"
        "0x55ef492c5670: proto=sockpair src=unix:2 fe=GLOBAL be=<NONE> srv=<none> ts=00 epoch=0 age=0s\n"
        "0x7f6d18047660: proto=tcpv4 src=127.0.0.1:33526 fe=f be=django srv=w10 ts=00 epoch=0 age=1s\n"
    )
    assert plan.sessions_to_cut(sessions, [("django", "w1")]) == ["0x55ef4918bb50"]


# --- bad input


@pytest.mark.parametrize(
    "values",
    [
        {"servers": ()},
        {"servers": ("",)},
        {"backends": ()},
        *({"servers": (name,)} for name in ("a b", "a;b", "a/b", "a#b", "a\nb", "a\tb", "a\x7fb", "a\\b", "a\u2028b")),
        {"state": "", "weight": ""},
        *({"weight": text} for text in ("-1", "257", "1.5", "50 %", "%", "ten", "5%%")),
        *({"min_healthy": text} for text in ("", "-1", "101%", "half", "1.5")),
        *({option: -0.1} for option in ("timeout", "ready_timeout", "connect_timeout")),
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"poll": 0},
        {"poll": float("nan")},
        {"drained_samples": 0},
    ],
)
def test_bad_input(values: dict[str, Any]) -> None:
    with pytest.raises(plan.Refused):
        wish(**values)


@pytest.mark.parametrize(
    "text", ["", "run/x.sock", "host", "host:0", "host:65536", "host:http", ":80", "[::1:80", "a b:80"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(plan.Refused):
        plan.parse_address(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/x.sock", "/run/x.sock"),
        ("lb1:9999", ("lb1", 9999)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: Any) -> None:
    assert plan.parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "initial", "weight"),
    [("0", 10, 0), ("256", 10, 256), ("50%", 10, 5), ("50%", 1, 0), ("33%", 100, 33), ("300%", 100, 256), ("0%", 7, 0)],
)
def test_weights_as_haproxy_counts_them(text: str, initial: int, weight: int) -> None:
    assert plan.weight_of(text, initial) == weight


@pytest.mark.parametrize(
    ("text", "total", "number"), [("0", 5, 0), ("2", 5, 2), ("50%", 4, 2), ("50%", 3, 2), ("1%", 3, 1), ("100%", 3, 3)]
)
def test_enough(text: str, total: int, number: int) -> None:
    assert plan.enough(text, total) == number


# --- deciding


ALL = by_key(server("w1"), server("w2"), server("w1", backend="plain"), server("s1", backend="static"))


@pytest.mark.parametrize(
    ("backends", "servers", "keys"),
    [
        (["*"], ["w1"], [("django", "w1"), ("plain", "w1")]),
        (["django"], ["w*"], [("django", "w1"), ("django", "w2")]),
        (["django", "static"], ["w2", "s1"], [("django", "w2"), ("static", "s1")]),
        (["[dp]*"], ["w[12]"], [("django", "w1"), ("django", "w2"), ("plain", "w1")]),
    ],
)
def test_selection(backends: list[str], servers: list[str], keys: list[plan.Key]) -> None:
    assert plan.select(ALL, backends, servers, "lb") == keys


@pytest.mark.parametrize(
    ("backends", "servers", "words"),
    [
        (["*"], ["w3"], "lb has no server 'w3'; it has django/w1, django/w2, plain/w1, static/s1"),
        (["*"], ["w1", "x*"], r"no server 'x\*'"),
        (["Django"], ["w1"], "no backend 'Django'; it has django, plain, static"),
        (["django"], ["s1"], "no server 's1'"),
        (["django", "static"], ["w1"], "none of the servers w1 is in the backend 'static' of lb"),
    ],
)
def test_selection_of_nothing(backends: list[str], servers: list[str], words: str) -> None:
    with pytest.raises(plan.Refused, match=words):
        plan.select(ALL, backends, servers, "lb")


@pytest.mark.parametrize(
    ("first", "second", "values", "refused"),
    [
        ({}, {}, {}, False),
        ({}, {"state": 0}, {}, True),
        ({}, {"admin_mask": 8}, {}, True),
        ({}, {"weight": 0}, {}, True),
        ({}, {"state": 0}, {"min_healthy": "0"}, False),
        ({}, {}, {"min_healthy": "2"}, True),
        ({}, {}, {"min_healthy": "50%"}, False),
        ({}, {}, {"min_healthy": "51%"}, True),
        # What gets no requests now is not taken away.
        ({"state": 0}, {"state": 0}, {}, False),
        ({"admin_mask": 8}, {"state": 0}, {"state": MAINT}, False),
        ({}, {"state": 0}, {"state": READY}, False),
        ({}, {"state": 0}, {"state": "", "weight": "0"}, True),
        ({}, {"state": 0}, {"state": READY, "weight": "0%"}, True),
        ({}, {"state": 0}, {"state": "", "weight": "1"}, False),
    ],
)
def test_enough_servers_stay(
    first: dict[str, Any], second: dict[str, Any], values: dict[str, Any], refused: bool
) -> None:
    servers = by_key(server("w1", **first), server("w2", **second), server("w1", backend="other"))
    try:
        plan.check_possible(servers, [("django", "w1")], wish(**values), "lb")
    except plan.Refused as error:
        assert refused and "min_healthy" in str(error) and "django on lb" in str(error)
    else:
        assert not refused


def test_all_that_leave_are_counted_together() -> None:
    servers = by_key(server("w1"), server("w2"), server("w3"))
    keys = [("django", "w1"), ("django", "w2")]
    plan.check_possible(servers, keys, wish(), "lb")
    with pytest.raises(plan.Refused, match=r"without w1, w2 the backend django on lb would have 1 .* wants 2"):
        plan.check_possible(servers, keys, wish(min_healthy="2"), "lb")


def test_inherited_state_cannot_be_taken() -> None:
    with pytest.raises(plan.Refused, match="in state maint because"):
        plan.check_possible(by_key(server(admin_mask=32)), [("django", "w1")], wish(state=READY), "lb")


W1 = "set server django/w1 "


@pytest.mark.parametrize(
    ("found", "values", "commands"),
    [
        ({}, {}, ["state drain"]),
        ({"admin_mask": 8}, {}, []),
        # Coming back from MAINT it would look healthy.
        ({"admin_mask": 1}, {}, ["state drain", "health down"]),
        ({"admin_mask": 1, "check_mask": 0}, {}, ["state drain"]),
        ({"admin_mask": 1, "check_mask": 2}, {}, ["state drain"]),
        ({}, {"state": MAINT}, ["state drain"]),
        ({}, {"state": MAINT, "wait": False}, ["state maint"]),
        ({"admin_mask": 8}, {"state": MAINT}, []),
        ({"admin_mask": 8}, {"state": MAINT, "wait": False}, ["state maint"]),
        ({"admin_mask": 1}, {"state": MAINT}, []),
        ({}, {"state": READY}, []),
        ({"state": 0}, {"state": READY}, []),
        ({"admin_mask": 1, "check_mask": 14}, {"state": READY}, ["state drain", "health down"]),
        ({"admin_mask": 8}, {"state": READY}, ["health down"]),
        ({"admin_mask": 1}, {"state": READY, "wait": False}, ["state drain", "health down", "state ready"]),
        ({"admin_mask": 1}, {"state": READY, "proof": False}, ["state ready"]),
        ({"admin_mask": 1, "check_mask": 0}, {"state": READY}, ["state ready"]),
        ({"admin_mask": 1}, {"state": READY, "weight": "5"}, ["weight 5", "state drain", "health down"]),
        ({}, {"state": "", "weight": "50%"}, ["weight 5"]),
        ({}, {"state": "", "weight": "10"}, []),
    ],
)
def test_what_is_said_first(found: dict[str, Any], values: dict[str, Any], commands: list[str]) -> None:
    assert plan.first_commands(server(**found), wish(**values)) == [W1 + command for command in commands]


@pytest.mark.parametrize(
    ("found", "values", "admin"),
    [
        ({}, {"state": MAINT}, DRAIN),
        ({"admin_mask": 1}, {"state": MAINT}, MAINT),
        ({"admin_mask": 8}, {"state": MAINT}, DRAIN),
        ({}, {"state": MAINT, "wait": False}, MAINT),
        ({"admin_mask": 1}, {"state": READY}, DRAIN),
        ({"admin_mask": 1}, {"state": READY, "wait": False}, READY),
        ({"admin_mask": 1, "check_mask": 0}, {"state": READY}, READY),
        ({"admin_mask": 8}, {"state": "", "weight": "1"}, DRAIN),
    ],
)
def test_where_it_waits(found: dict[str, Any], values: dict[str, Any], admin: str) -> None:
    assert plan.first_admin(server(**found), wish(**values)) == admin


@pytest.mark.parametrize(
    ("before", "now", "commands"),
    [
        ({}, {"admin_mask": 8}, ["state ready"]),
        ({}, {}, []),
        ({"admin_mask": 1}, {"admin_mask": 8}, ["state maint"]),
        ({"weight": 10}, {"weight": 5, "admin_mask": 8}, ["state ready", "weight 10"]),
    ],
)
def test_restoring(before: dict[str, Any], now: dict[str, Any], commands: list[str]) -> None:
    assert plan.restoring_commands(server(**before), server(**now)) == [W1 + command for command in commands]


@pytest.mark.parametrize(
    ("then", "now", "allowed", "over", "found"),
    [
        ({}, {"hrsp_2xx": "9"}, "0", True, False),
        ({}, {"hrsp_2xx": "9", "hrsp_5xx": "1"}, "0", True, True),
        ({"hrsp_5xx": "7"}, {"hrsp_2xx": "9", "hrsp_5xx": "7"}, "0", True, False),  # from before
        ({}, {"econ": "1"}, "0", True, True),
        ({}, {"eresp": "2"}, "1", True, True),
        ({}, {"hrsp_5xx": "2", "eresp": "2"}, "2", True, False),  # the same two
        ({}, {"hrsp_2xx": "9", "hrsp_5xx": "1"}, "10%", True, False),
        ({}, {"hrsp_2xx": "2", "hrsp_5xx": "1"}, "10%", True, False),  # a single one
        ({}, {"hrsp_2xx": "18", "hrsp_5xx": "3"}, "10%", True, True),
        ({}, {"hrsp_5xx": "4"}, "0", False, False),  # not yet
        ({}, {"hrsp_5xx": "5"}, "0", False, True),  # enough
    ],
)
def test_what_a_server_makes_of_its_first_requests(
    then: dict[str, str], now: dict[str, str], allowed: str, over: bool, found: bool
) -> None:
    before = server(stat=then)
    back = plan.Back("lb", "django", "app1", 0.0, "1 x", before.errors, before.responses)
    problem = plan.soak_problem(back, server(stat=now), allowed, over)
    assert bool(problem) is found, problem


def test_nothing_is_watched_while_something_comes_back() -> None:
    with pytest.raises(plan.Refused, match="watch is for state=drain and state=maint, not for state=ready"):
        wish(state="ready", watch=(plan.Back("lb", "django", "app1", 0.0, "1 x", 0, 0),))


@pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "many"])
def test_bad_shares_of_errors(text: str) -> None:
    with pytest.raises(plan.Refused, match="soak_errors"):
        wish(soak_errors=text)
