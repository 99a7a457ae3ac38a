# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""What one member of a PostgreSQL cluster should do, decided from what the members say about themselves.

Nothing here reads or writes anything. The one rule behind every branch: a second primary is worse than
no primary, so whatever cannot be known for sure is refused with a sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# What a member asked over the network may be, the most telling answer first.
ANSWERS = ("primary", "standby", "starting", "rejected", "unreachable")


@dataclass(frozen=True)
class View:
    """What is known of one member; None means not known."""

    name: str
    inspected: bool = False
    data: str | None = None  # absent | present | foreign
    role: str | None = None  # primary | standby
    running: bool | None = None
    streaming: bool = False
    fenced: bool = False  # put out of action by a move of the primary
    timeline: int | None = None
    system_identifier: str | None = None
    answer: str | None = None  # of ANSWERS, when only asked over the network
    other_managers: tuple[str, ...] = ()
    other_versions: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Inspected on the spot, or it said itself over the network what it is."""
        return self.inspected or self.answer in ("primary", "standby")


@dataclass(frozen=True)
class Decision:
    """What this member does: exactly one action, or a refusal."""

    action: str  # initialise | clone | run | leave_stopped | refuse
    primary: str | None = None
    reason: str = ""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for Ansible."""
        return asdict(self)


def _inspected_view(name: str, node: Mapping[str, Any]) -> View:
    return View(
        name=name,
        inspected=True,
        data=node["data"],
        role=node.get("role"),
        running=bool(node.get("running")),
        fenced=bool(node.get("start") == "disabled" and not node.get("running")),
        streaming=bool((node.get("upstream") or {}).get("status") == "streaming"),
        timeline=node.get("timeline"),
        system_identifier=node.get("system_identifier"),
        other_managers=tuple(node.get("other_managers") or ()),
        other_versions=tuple(str(version) for version in node.get("other_versions") or ()),
    )


def _asked_view(name: str, answers: Iterable[Mapping[str, Any]]) -> View:
    best: Mapping[str, Any] | None = None
    for answer in answers:
        if best is None or ANSWERS.index(answer["state"]) < ANSWERS.index(best["state"]):
            best = answer
    if best is None:
        return View(name=name)
    told = best["state"] in ("primary", "standby")
    return View(
        name=name,
        data="present" if best["state"] in ("primary", "standby", "starting") else None,
        role=best["state"] if told else None,
        running=True if best["state"] != "unreachable" else None,
        timeline=best.get("timeline"),
        system_identifier=best.get("system_identifier"),
        answer=best["state"],
    )


def build_views(members: Sequence[str], inspected: Mapping[str, Mapping[str, Any]]) -> dict[str, View]:
    """Merge what the members in this play found on the spot and what their peers answered over the network."""
    views: dict[str, View] = {}
    for name in members:
        if inspected.get(name):
            views[name] = _inspected_view(name, inspected[name]["node"])
        else:
            answers = [found["peers"][name] for found in inspected.values() if found and name in found.get("peers", {})]
            views[name] = _asked_view(name, answers)
    return views


def _names(views: Iterable[View]) -> str:
    return ", ".join(view.name for view in views)


def _describe(view: View) -> str:
    if view.answer:
        return f"{view.name} ({view.answer})"
    return view.name if view.inspected else f"{view.name} (not asked)"


def _refuse(reason: str) -> Decision:
    return Decision("refuse", reason=reason)


def _refuse_own_state(me: View) -> Decision | None:
    """Return a refusal for what can be seen on this member alone."""
    if me.other_managers:
        return _refuse(
            f"{me.name} is managed by {', '.join(me.other_managers)}, which starts, stops and promotes PostgreSQL "
            "itself. "
            "Two managers end in two primaries: remove it first, or take this host out of the postgresql group."
        )
    if me.data == "foreign":
        return _refuse(
            f"The data directory of {me.name} is not empty, but it is no complete PostgreSQL cluster. Nothing was "
            "touched: "
            "look at it, move it away, and run again."
        )
    if me.data == "absent" and me.other_versions:
        return _refuse(
            f"{me.name} holds a cluster of PostgreSQL {', '.join(me.other_versions)}, and none of the version of this "
            "Debian release. A major upgrade is not made by this role: upgrade with pg_upgradecluster, or move the "
            "old cluster away."
        )
    return None


def _refuse_strangers(views: Mapping[str, View]) -> Decision | None:
    identifiers: dict[str, list[str]] = {}
    for view in views.values():
        if view.system_identifier:
            identifiers.setdefault(str(view.system_identifier), []).append(view.name)
    if len(identifiers) < 2:
        return None
    listed = "; ".join(f"{', '.join(names)}: {identifier}" for identifier, names in sorted(identifiers.items()))
    return _refuse(
        f"The members hold different clusters (system identifiers: {listed}). They have never been copies of one "
        "another: "
        "move away the data directory of those that are wrong and run again, then they are cloned."
    )


def _follow(me: View, primary: View) -> Decision:
    """Return what a member does while there is exactly one live primary."""
    if me.name == primary.name:
        return Decision("run", primary.name, f"{me.name} is the primary")
    if me.data == "absent":
        return Decision("clone", primary.name, f"{me.name} is empty and {primary.name} is the primary")
    if me.fenced:
        return Decision(
            "leave_stopped",
            primary.name,
            f"{me.name} was put out of action and {primary.name} is the primary",
            [f"{me.name} was put out of action when the primary moved to {primary.name}, and is left so. Bring it back "
             "with playbooks/rejoin.yml."],
        )  # fmt: skip
    if me.role == "primary":
        return Decision(
            "leave_stopped",
            primary.name,
            f"{me.name} is a stopped former primary and {primary.name} is the primary",
            [
                f"{me.name} was a primary and is stopped while {primary.name} is the primary. It is left alone: "
                "started as it is "
                "it would be a second primary, and a reboot of the host would start it. Bring it back with "
                "playbooks/rejoin.yml, "
                "or move its data directory away and run again, then it is cloned."
            ],
        )
    warnings = []
    if me.running and not me.streaming:
        warnings.append(
            f"{me.name} runs as a standby but does not stream from the primary {primary.name}: see its log. "
            "If it has diverged, playbooks/rejoin.yml or a new clone brings it back."
        )
    return Decision("run", primary.name, f"{me.name} is a standby of {primary.name}", warnings)


def _fresh(me: View, views: Mapping[str, View], initial_primary: str, unknown: Sequence[View]) -> Decision:
    """Return what a member does while no known member holds data."""
    if unknown:
        return _refuse(
            "No primary answers, and whether these members hold data is not known: "
            f"{', '.join(_describe(view) for view in unknown)}. "
            "Making a new cluster could be a second one. Run again without --limit and with all members reachable; "
            "a member that answers 'rejected' lets this host in once it has been in a run itself."
        )
    blocked = [view for view in views.values() if view.data == "foreign" or view.other_versions or view.other_managers]
    if blocked:
        return _refuse(f"No cluster is made while a member holds something that is not understood: {_names(blocked)}.")
    if me.name == initial_primary:
        return Decision("initialise", initial_primary, "no member holds data")
    return Decision("clone", initial_primary, f"no member holds data and {initial_primary} becomes the first primary")


def _restart(me: View, views: Mapping[str, View], stopped: Sequence[View], unknown: Sequence[View]) -> Decision:
    """Return what a member does when all primaries are stopped, as after a power cut."""
    if unknown:
        return _refuse(
            f"{_names(stopped)} was a primary and is stopped, and what these members are is not known: "
            f"{', '.join(_describe(view) for view in unknown)}. One of them may have been promoted. Run again "
            "without --limit and with "
            f"all members reachable, or start the right one by hand."
        )
    newest = max(view.timeline or 0 for view in views.values())
    candidates = [view for view in stopped if (view.timeline or 0) == newest]
    if len(candidates) != 1:
        found = ", ".join(
            f"{view.name} (timeline {view.timeline})" for view in views.values() if view.data == "present"
        )
        why = (
            "more than one of them is on the newest timeline"
            if candidates
            else "a standby has seen a newer timeline than they have"
        )
        return _refuse(
            f"Stopped former primaries: {_names(stopped)}, but {why}: {found}. Which one holds the truth is for "
            "you to say: "
            "start that one by hand and run again."
        )
    chosen = candidates[0]
    if me.name == chosen.name:
        return Decision("run", chosen.name, f"{me.name} is the only primary there is, and it is stopped")
    return _follow(me, chosen)


def plan(
    members: Sequence[str], self_name: str, initial_primary: str, inspected: Mapping[str, Mapping[str, Any]]
) -> Decision:
    """Decide what the member self_name does.

    members: the names of all members. inspected: for each member in this play, what postgresql_replication_info
    returned there (`node`, and `peers` for what it heard over the network).
    """
    for name, what in ((self_name, "this host"), (initial_primary, "postgresql_initial_primary")):
        if name not in members:
            raise ValueError(f"{what} ({name}) is not one of the members: {', '.join(members)}")
    if not inspected.get(self_name):
        raise ValueError(f"{self_name} itself was not inspected")
    views = build_views(members, inspected)
    me = views[self_name]
    refusal = _refuse_own_state(me) or _refuse_strangers(views)
    if refusal:
        return refusal

    live = [view for view in views.values() if view.running and view.role == "primary"]
    if len(live) > 1:
        return _refuse(
            f"Split brain: {_names(live)} are primaries at the same time. Nothing was changed. Stop the wrong one "
            "(the one the application "
            "does not write to), then bring it back with playbooks/rejoin.yml."
        )
    if live:
        return _follow(me, live[0])

    unknown = [view for view in views.values() if not view.known]
    if me.running and me.streaming:
        return Decision(
            "run",
            None,
            f"{me.name} streams from a live primary, which could not be asked: {', '.join(map(_describe, unknown))}",
        )
    if all(view.data != "present" for view in views.values()):
        return _fresh(me, views, initial_primary, unknown)
    fenced = [view for view in views.values() if view.data == "present" and view.fenced]
    if fenced:
        return _refuse(
            f"{_names(fenced)} was put out of action by a move of the primary, and nobody has become the primary: the "
            "move was interrupted. Run playbooks/switchover.yml (or failover.yml) again, it finishes or undoes it."
        )
    stopped = [view for view in views.values() if view.data == "present" and view.role == "primary"]
    if stopped:
        return _restart(me, views, stopped, unknown)
    holders = [view for view in views.values() if view.data == "present"]
    silent = f" Not known: {', '.join(map(_describe, unknown))}." if unknown else ""
    return _refuse(
        f"No member answers as the primary, but there is data on {_names(holders)}.{silent} Start the primary if "
        "it is down; if it is gone "
        "for good, promote a standby with playbooks/failover.yml; then run again. No standby is promoted by this role."
    )
