# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd_units and the real systemd of a lab host."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _systemd_units_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils import _systemd_units_plan as plan

from conftest import LabHost

UNITS = "/etc/systemd/system"
Units = Callable[..., dict[str, Any]]


@pytest.fixture
def units(lab_host: LabHost) -> Units:
    """Runs the module with these units; settle is short, because most of these units don't crash late."""

    def run(*wanted: dict[str, Any], check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {"units": list(wanted), "settle": 0.3, **more}
        return lab_host.module("systemd_units", arguments, check)

    return run


def write_unit(host: LabHost, name: str, lines: list[str]) -> None:
    host.run(f"printf '%s\\n' {' '.join(shlex.quote(line) for line in lines)} > {UNITS}/{name}")


def actions(result: dict[str, Any], name: str) -> list[str]:
    assert not result["failed"], result["msg"]
    found: list[str] = result["units"][name]["actions"]
    return found


def starts(host: LabHost, name: str) -> str:
    return host.run(f"systemctl show -P InvocationID {name}").strip()


def test_life_of_a_unit(lab_host: LabHost, units: Units) -> None:
    """Start, converge, reload, restart, interrupted runs: each followed by a run that changes nothing."""
    name = "t-life.service"
    wish = {"name": name, "enabled": True, "restart_on": ["/etc/t-restart"], "reload_on": ["/etc/t-reload.d"]}
    lab_host.run("mkdir -p /etc/t-reload.d; echo 1 > /etc/t-restart; rm -f /run/t-reloads")
    # Not there yet: predicted, but an error when it is meant.
    assert actions(units(wish, check=True), name) == ["enable", "start"]
    assert "t-life.service: does not exist" in units(wish)["msg"]
    write_unit(
        lab_host,
        name,
        [
            "[Service]",
            "ExecStart=/bin/sleep infinity",
            "ExecReload=/bin/sh -c 'echo x >> /run/t-reloads; test ! -e /run/t-refuse'",
            "[Install]",
            "WantedBy=multi-user.target",
        ],
    )
    assert actions(units(wish), name) == ["enable", "start"]
    assert lab_host.run(f"systemctl is-active {name}; systemctl is-enabled {name}").split() == ["active", "enabled"]
    converged = units(wish)
    assert converged["changed"] is False
    assert converged["daemon_reloaded"] is False

    # A file that an interrupted run left behind: nobody says that it changed.
    invocation = starts(lab_host, name)
    lab_host.run("echo new > /etc/t-reload.d/a.conf")
    assert actions(units(wish, check=True), name) == ["reload"]
    assert lab_host.run("cat /run/t-reloads 2>/dev/null || true") == ""
    assert actions(units(wish), name) == ["reload"]
    assert lab_host.run("cat /run/t-reloads") == "x\n"
    assert starts(lab_host, name) == invocation
    assert units(wish)["changed"] is False

    # A reload that fails is told, and tried again by the next run.
    lab_host.run("touch /run/t-refuse; rm /etc/t-reload.d/a.conf")
    refused = units(wish)
    assert refused["failed"]
    assert "t-life.service failed to reload" in refused["msg"]
    assert refused["units"][name]["actions"] == ["reload"]
    lab_host.run("rm /run/t-refuse")
    assert actions(units(wish), name) == ["reload"]
    assert units(wish)["changed"] is False

    # The mode of a file counts like its content, and a restart makes the reload unnecessary.
    lab_host.run("chmod 600 /etc/t-restart; touch /etc/t-reload.d; : > /run/t-reloads")
    assert actions(units(wish), name) == ["restart"]
    assert starts(lab_host, name) != invocation
    assert lab_host.run("cat /run/t-reloads") == ""
    assert units(wish)["changed"] is False

    # What the play says it changed counts where no time can tell, and only there.
    assert actions(units(wish, changed_paths=["/etc/t-reload.d/removed"]), name) == ["reload"]
    assert units(wish, changed_paths=["/etc/t-restart"])["changed"] is False
    assert actions(units(wish, check=True, changed_paths=["/etc/t-restart"]), name) == ["restart"]

    # A changed unit file is read again; it restarts nothing unless it is among restart_on.
    lab_host.run(f"sed -i 's/sleep infinity/sleep 100000/' {UNITS}/{name}")
    changed = units(wish)
    assert changed["daemon_reloaded"] is True
    assert changed["changed"] is False
    assert actions(units({**wish, "restart_on": [f"{UNITS}/t-life.*"]}), name) == ["restart"]
    assert "100000" in lab_host.run(f"cat /proc/$(systemctl show -P MainPID {name})/cmdline")

    assert actions(units({"name": name, "enabled": False, "state": "stopped"}), name) == ["disable", "stop"]
    assert lab_host.run(f"systemctl is-active {name} || true").strip() == "inactive"


def test_a_time_in_the_future_does_not_restart_for_ever(lab_host: LabHost, units: Units) -> None:
    write_unit(lab_host, "t-future.service", ["[Service]", "ExecStart=/bin/sleep infinity"])
    wish = {"name": "t-future", "restart_on": ["/etc/t-future"]}
    lab_host.run("touch -d '+1 year' /etc/t-future")
    assert actions(units(wish), "t-future.service") == ["start"]
    assert units(wish)["changed"] is False
    # And one in the past does not hide a change.
    lab_host.run("touch -d '-1 year' /etc/t-future")
    assert actions(units(wish), "t-future.service") == ["restart"]


def test_switching_a_link_restarts_an_instance(lab_host: LabHost, units: Units) -> None:
    """As of a release: the link counts, not what happens inside the directory that it points to."""
    write_unit(lab_host, "t-inst@.service", ["[Service]", "ExecStart=/bin/sleep infinity"])
    lab_host.run("mkdir -p /srv/t/1 /srv/t/2; ln -sfn 1 /srv/t/current")
    wish = {"name": "t-inst@web.service", "restart_on": ["/srv/t/current"]}
    assert actions(units(wish), "t-inst@web.service") == ["start"]
    lab_host.run("touch /srv/t/1/x")
    assert units(wish)["changed"] is False
    lab_host.run("ln -sfn 2 /srv/t/current")
    assert actions(units(wish), "t-inst@web.service") == ["restart"]
    assert units(wish)["changed"] is False


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ExecStart=/bin/sh -c 'echo out of luck; exit 7'", "Type=oneshot", "RemainAfterExit=yes"], "failed to start"),
        (["ExecStart=/bin/sh -c 'sleep 0.3; echo out of luck; exit 7'"], "did not stay up for 2 seconds"),
        (["ExecStart=/bin/sh -c 'sleep 0.3; echo out of luck; exit 7'", "Restart=always"], "did not stay up"),
    ],
)
def test_a_unit_that_fails_is_told_with_its_own_words(
    lab_host: LabHost, units: Units, lines: list[str], message: str
) -> None:
    write_unit(lab_host, "t-fail.service", ["[Service]", *lines])
    write_unit(lab_host, "t-good.service", ["[Service]", "ExecStart=/bin/sleep infinity"])
    lab_host.run("systemctl daemon-reload; systemctl stop t-fail t-good; systemctl reset-failed t-fail || true")
    result = units({"name": "t-good"}, {"name": "t-fail"}, settle=2.0)
    assert result["failed"]
    assert result["failed_unit"] == "t-fail.service"
    assert message in result["msg"]
    again = "Restart=always" in lines
    assert ("systemd started it again" if again else "exit status 7") in result["msg"]
    assert "out of luck" in result["msg"]
    assert result["units"]["t-good.service"]["actions"] == ["start"]
    # With its cause removed it starts, also when systemd had given it up. One that systemd starts again and again could
    # be just running when it is looked at, by the old file, and fail a moment later.
    if again:
        lab_host.run("systemctl stop t-fail")
    write_unit(lab_host, "t-fail.service", ["[Service]", "ExecStart=/bin/sleep infinity"])
    assert actions(units({"name": "t-fail"}), "t-fail.service")[-1:] in (["start"], [])
    assert lab_host.run("systemctl is-active t-fail").strip() == "active"


def test_a_unit_that_was_given_up_starts_again(lab_host: LabHost, units: Units) -> None:
    write_unit(
        lab_host,
        "t-limit.service",
        [
            "[Unit]",
            "StartLimitBurst=2",
            "StartLimitIntervalSec=1h",
            "[Service]",
            "ExecStart=/bin/false",
            "Restart=always",
        ],
    )
    lab_host.run("systemctl daemon-reload; systemctl start t-limit; sleep 1; systemctl is-failed t-limit")
    lab_host.run(f"sed -i 's,/bin/false,/bin/sleep infinity,' {UNITS}/t-limit.service")
    assert actions(units({"name": "t-limit"}), "t-limit.service") == ["start"]


def test_a_oneshot_that_leaves_no_trace_is_refused(lab_host: LabHost, units: Units) -> None:
    """systemd forgets such a unit, so whether it ran cannot be told; one that remains active is like any other."""
    lines = ["[Service]", "Type=oneshot", "ExecStart=/bin/sh -c 'echo x >> /run/t-once'"]
    write_unit(lab_host, "t-once.service", lines)
    lab_host.run("touch /etc/t-once; rm -f /run/t-once")
    wish = {"name": "t-once", "restart_on": ["/etc/t-once"]}
    assert "RemainAfterExit" in units(wish)["msg"]
    write_unit(lab_host, "t-once.service", [*lines, "RemainAfterExit=yes"])
    assert actions(units(wish), "t-once.service") == ["start"]
    assert units(wish)["changed"] is False
    lab_host.run("touch /etc/t-once")
    assert actions(units(wish), "t-once.service") == ["restart"]
    assert lab_host.run("cat /run/t-once") == "x\nx\n"


def test_masking(lab_host: LabHost, units: Units) -> None:
    name = "apt-daily.timer"
    assert actions(units({"name": name, "masked": True}), name)[:1] == ["mask"]
    assert units({"name": name, "masked": True})["changed"] is False
    assert "masked: false" in units({"name": name})["msg"]
    assert actions(units({"name": name, "masked": False}), name) == ["unmask", "start"]
    assert units({"name": name, "masked": False})["changed"] is False


def first_look(host: LabHost, wish: dict[str, Any]) -> bool:
    """Whether the question that is asked over the shell finds that there is nothing to do."""
    wishes = plan.parse([wish])
    command = listing.command(wishes)
    assert command is not None
    # With a terminal, as Ansible asks.
    return listing.as_wanted(wishes, host.run(f"script --quiet --command {shlex.quote(command)} /dev/null")) is not None


def test_the_first_look_finds_what_the_module_would_do(lab_host: LabHost, units: Units) -> None:
    name = "t-look.service"
    wish = {
        "name": name,
        "enabled": True,
        "restart_on": ["/etc/t-look.d", "/etc/t-look-*.conf"],
        "reload_on": ["/etc/t-l"],
    }
    lab_host.run("mkdir -p /etc/t-look.d; echo 1 | tee /etc/t-look.d/a /etc/t-look-a.conf > /etc/t-l; sleep 0.1")
    service = ["[Service]", "ExecStart=/bin/sleep infinity", "ExecReload=/bin/true"]
    lines = ["[Unit]", "StartLimitIntervalSec=0", *service, "[Install]", "WantedBy=multi-user.target"]
    assert not first_look(lab_host, wish), "it is not there"
    write_unit(lab_host, name, lines)
    assert not first_look(lab_host, wish), "it does not run"
    units(wish)
    assert first_look(lab_host, wish)
    for drift in (
        "echo 2 > /etc/t-look.d/a",
        "touch /etc/t-look.d/b",
        "rm /etc/t-look.d/b",
        "chmod 600 /etc/t-look-a.conf",
        "touch /etc/t-look-new.conf",
        "echo 2 > /etc/t-l",
        f"systemctl stop {name}",
        f"systemctl disable --quiet {name}",
        f"systemctl disable --quiet --now {name}",
        f"echo '#' >> {UNITS}/{name}",
    ):
        # Later than the start: what a file says is compared to the hundredth of a second.
        lab_host.run(f"sleep 0.1; {drift}")
        assert not first_look(lab_host, wish), drift
        done = units(wish)
        assert not done["failed"], done["msg"]
        assert done["changed"] or done["daemon_reloaded"], drift
        assert first_look(lab_host, wish), drift
    assert listing.command(plan.parse([{"name": name, "restart_on": ["/etc/a place"]}])) is None
    units({"name": name, "enabled": False, "state": "stopped"})
    assert first_look(lab_host, {"name": name, "enabled": False, "state": "stopped"})
