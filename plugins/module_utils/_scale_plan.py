# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Whether a host can be taken out of the cluster, and why not. Pure: no I/O, no Ansible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.flotilla.django.plugins.module_utils._status_plan import Answers, Cluster, part_of, synchronous

# Nobody can do without a host of each of these.
NEEDED = ("haproxy", "django", "redis", "postgresql", "nginx_static")
ACCEPTS = ("gap", "no_failover", "stray_clients")


def without(groups: Mapping[str, Sequence[str]], name: str) -> dict[str, list[str]]:
    """The groups of the inventory as they are when a host is gone."""
    return {str(group): [str(host) for host in hosts if host != name] for group, hosts in groups.items()}


def scale_in_problems(
    cluster: Cluster, answers: Answers, name: str, accept: Sequence[str] = (), variable: str = "scale_in_host"
) -> list[str]:
    """Why a host must stay, each with what to do first; nothing when it can go.

    `answers` is what the hosts said to the module status_info. What is accepted is named by the words of ACCEPTS.
    """
    known = list(dict.fromkeys(host for hosts in cluster.tiers.values() for host in hosts))
    tiers = [tier for tier, hosts in cluster.tiers.items() if name in hosts]
    if not tiers:
        return [f"{variable}: got '{name}', wants a host of the cluster: {', '.join(known)}"]
    if unknown := sorted(set(accept) - set(ACCEPTS)):
        return [f"scale_in_accept: got {', '.join(unknown)}, wants words of {', '.join(ACCEPTS)}"]
    last = [tier for tier in tiers if tier in NEEDED and len(cluster.members(tier)) == 1]
    if last:
        return [f"{variable}: {name} is the only host of the group {tier}, which needs one" for tier in last]
    silent = [
        host for host in known
        if host != name and (host not in answers or answers[host].get("unreachable") or answers[host].get("failed"))
    ]  # fmt: skip
    if silent:
        return [f"{', '.join(silent)} did not answer, and could not be told that {name} goes: mend that first"]
    found: list[str] = []
    found += _lock(cluster, answers)
    for tier in tiers:
        if tier in ("django", "nginx_static"):
            found += _server(cluster, answers, name, tier)
    if "haproxy" in tiers:
        found += _balancer(cluster, answers, name, accept)
    if "postgresql" in tiers:
        found += _database(cluster, answers, name)
    if "redis" in tiers:
        found += _store(cluster, answers, name, accept)
    return found


def _others(cluster: Cluster, tier: str, name: str) -> list[str]:
    return [host for host in cluster.members(tier) if host != name]


def _lock(cluster: Cluster, answers: Answers) -> list[str]:
    lock = part_of(answers, cluster.lock_host, "django").get("lock") or {}
    if lock.get("id"):
        return [
            f"a {lock.get('kind') or 'deploy'} of {lock.get('user', '?')}@{lock.get('host', '?')} goes on, or was "
            "interrupted: let it end first (playbooks/status.yml says more)"
        ]
    if lock.get("nodes"):
        return [
            f"an earlier deploy left {', '.join(lock['nodes'])} out of service: finish it first, playbooks/deploy.yml"
        ]
    return []


def _server(cluster: Cluster, answers: Answers, name: str, tier: str) -> list[str]:
    """Every balancer must have somebody else to send requests to."""
    found = []
    for balancer in cluster.members("haproxy"):
        if balancer == name:
            continue
        servers = part_of(answers, balancer, "haproxy").get("servers")
        if servers is None:
            found.append(f"HAProxy on {balancer} does not answer: playbooks/site.yml --limit {balancer} first")
        elif not any(
            server["backend"] == tier and server["server"] != name and server["admin"] == "ready"
            and server["operational"] == "up" and server["weight"] > 0
            for server in servers
        ):  # fmt: skip
            found.append(f"{balancer} has no other server of {tier} that takes requests: see playbooks/status.yml")
    return found


def _balancer(cluster: Cluster, answers: Answers, name: str, accept: Sequence[str]) -> list[str]:
    others = _others(cluster, "haproxy", name)
    found = []
    well = [host for host in others if _can_take_over(cluster, answers, host)]
    if not well:
        found.append(f"of the other balancers ({', '.join(others)}) none can take over: playbooks/status.yml says why")
    if not cluster.shared and "stray_clients" not in accept:
        found.append(
            f"without haproxy_virtual_address clients come to {name} by its own address: take it out of the DNS, wait "
            "until nobody comes any more, then say -e scale_in_accept=stray_clients"
        )
    nodes = _others(cluster, "django", name)
    if len(nodes) == 1 and "gap" not in accept:
        found.append(
            f"{nodes[0]} will be the only node, and starts anew when it no longer trusts {name}: for some seconds "
            "nobody would answer. Add a node first, or say -e scale_in_accept=gap"
        )
    return found


def _can_take_over(cluster: Cluster, answers: Answers, name: str) -> bool:
    part, units = part_of(answers, name, "haproxy"), part_of(answers, name, "host").get("units") or {}
    return bool(part) and not part["drained"] and (not cluster.shared or units.get("keepalived.service") == "active")


def _database(cluster: Cluster, answers: Answers, name: str) -> list[str]:
    others = _others(cluster, "postgresql", name)
    nodes = {host: part for host in [name, *others] if (part := part_of(answers, host, "postgresql"))}
    primaries = [host for host, node in nodes.items() if node["accepting"] and node["role"] == "primary"]
    if name in primaries or (not primaries and (nodes.get(name) or {}).get("role") == "primary"):
        new = next((host for host in others if nodes.get(host, {}).get("accepting")), others[0])
        return [f"{name} is the database primary: playbooks/switchover.yml -e postgresql_new_primary={new} first"]
    if len(primaries) != 1:
        return [f"PostgreSQL has {len(primaries) or 'no'} primaries: playbooks/status.yml says what to do first"]
    down = [host for host in others if not nodes.get(host, {}).get("accepting")]
    if down:
        return [f"PostgreSQL on {', '.join(down)} does not answer: playbooks/status.yml says what to do first"]
    primary = nodes[primaries[0]]
    needed = synchronous(primary["synchronous_standby_names"])
    streaming = [
        item["name"] for item in primary["downstreams"] if item["state"] == "streaming" and item["name"] in others
    ]
    if len(streaming) < needed:
        return [
            f"commits wait for {needed} standbys, and without {name} {len(streaming)} stream: lower "
            "postgresql_synchronous_standbys, or add a member, and run playbooks/site.yml first"
        ]
    return []


def _store(cluster: Cluster, answers: Answers, name: str, accept: Sequence[str]) -> list[str]:
    others = _others(cluster, "redis", name)
    nodes = {host: part for host in [name, *others] if (part := part_of(answers, host, "redis"))}
    masters = [host for host, node in nodes.items() if node["state"] == "up" and node["role"] == "master"]
    down = [host for host in others if nodes.get(host, {}).get("state") != "up"]
    if down:
        return [f"Redis on {', '.join(down)} does not answer: playbooks/status.yml says what to do first"]
    if len(masters) != 1:
        return [f"Redis has {len(masters) or 'no'} masters: playbooks/status.yml says what to do first"]
    if masters == [name]:
        return [f"{name} is the Redis master: playbooks/redis_switchover.yml -e redis_new_master={others[0]} first"]
    sentinels = {host: nodes[host]["sentinel"] for host in others if nodes[host]["sentinel"]}
    lost = [host for host, sentinel in sentinels.items() if sentinel["state"] != "up"]
    if lost:
        return [f"the Sentinel of {', '.join(lost)} does not answer: playbooks/site.yml --tags redis first"]
    if sentinels and len(others) < 3 <= len(others) + 1 and "no_failover" not in accept:
        return [
            f"with {len(others)} Sentinels left, nobody replaces the Redis master when one of the hosts dies: "
            "add a member first, or say -e scale_in_accept=no_failover"
        ]
    return []
