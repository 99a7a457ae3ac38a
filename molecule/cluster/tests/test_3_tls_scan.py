# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scanner of TLS thinks of the shared address."""

from __future__ import annotations

import json

import pytest

from tests.cluster import DOMAIN, Lab

# A host of no tier, as far from the balancers as any client.
SCANNER = "app4"
GOOD = ("OK", "INFO", "LOW")
EXPECTED = {
    "cert_revocation": "the lab's own authority publishes no list of revoked certificates",
    "engine_problem": "about the scanner's own openssl, which lacks ciphers of Russian standards",
}
# Debian 12's version of the scanner.
OLD = {
    "cipher_order": "the client chooses, which Mozilla advises where all ciphers are good, and later versions accept",
    "sessionresumption_ticket": "it cannot ask a server that gives no tickets",
}


@pytest.mark.full  # two minutes and a half
def test_a_scan_finds_nothing_above_low(lab: Lab) -> None:
    lab.ssh(SCANNER, "apt-get update -qq && apt-get install -qq -y --no-install-recommends testssl.sh bsdextrautils")
    version = lab.ssh(SCANNER, "dpkg-query -W -f '${Version}' testssl.sh")
    lab.ssh(SCANNER, "cat > /run/ca.pem", (lab.directory / "tls" / "ca.pem").read_text())
    lab.ssh(
        SCANNER,
        "rm -f /run/scan.json; testssl --quiet --color 0 --warnings off --add-ca /run/ca.pem --jsonfile /run/scan.json "
        f"--ip {lab.shared_address()} {DOMAIN}:443 > /run/scan.log 2>&1 || true",
    )
    found = {item["id"]: item for item in json.loads(lab.ssh(SCANNER, "cat /run/scan.json"))}

    assert found["cert_chain_of_trust"]["severity"] == "OK", found["cert_chain_of_trust"]
    assert {"TLS1", "TLS1_1", "heartbleed", "ROBOT", "LOGJAM", "cipherlist_3DES_IDEA"} < set(found), sorted(found)
    expected = EXPECTED | (OLD if version.startswith("3.0") else {})
    bad = {name: item for name, item in found.items() if item["severity"] not in GOOD and name not in expected}
    assert not bad, bad
