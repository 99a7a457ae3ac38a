# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret can be read by somebody who is merely on a host."""

from __future__ import annotations

import pytest

from tests.cluster import SECRETS, Lab

HOSTS = ["lb1", "lb2", "app1", "app2", "app3", "db1", "db2", "db3", "cache1", "cache2", "cache3", "static1", "static2"]
HOSTS += ["mon1"]

# Run on a host with the secrets on standard input, one per line: prints where one of them can be read by everybody.
SEARCH = r"""
import os, stat, sys
secrets = [line for line in sys.stdin.buffer.read().split(b"\n\n\n") if line]
found = []
for directory, below, names in os.walk("/"):
    below[:] = [d for d in below if os.path.join(directory, d) not in ("/proc", "/sys", "/dev", "/usr")
                and os.lstat(os.path.join(directory, d)).st_mode & stat.S_IXOTH]
    for name in names:
        path = os.path.join(directory, name)
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_size < 20_000_000:
            with open(path, "rb") as file:
                content = file.read()
            found += [path for secret in secrets if secret in content]
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            content = file.read()
    except OSError:
        continue
    if int(process) != os.getpid():
        found += [f"the command line of {content[:40]!r}" for secret in secrets if secret in content]
print("\n".join(sorted(set(found))))
"""


@pytest.fixture(scope="module")
def secrets(lab: Lab) -> list[str]:
    return [str(lab.variable("app1", name)).strip() for name in SECRETS]


@pytest.mark.parametrize("host", HOSTS)
def test_no_secret_in_a_world_readable_file_or_a_command_line(lab: Lab, secrets: list[str], host: str) -> None:
    program = SEARCH.replace("'", "'\\''")
    assert lab.ssh(host, f"python3 -c '{program}'", "\n\n\n".join(secrets)).strip() == ""


def test_the_search_finds_a_secret_that_is_readable(lab: Lab, secrets: list[str]) -> None:
    secret = secrets[0]
    program = SEARCH.replace("'", "'\\''")
    lab.ssh("app1", "install -m 0644 /dev/stdin /etc/leak", secret)
    try:
        assert lab.ssh("app1", f"python3 -c '{program}'", secret).strip() == "/etc/leak"
    finally:
        lab.ssh("app1", "rm /etc/leak")
