# SPDX-License-Identifier: GPL-3.0-or-later
"""What the gates share: commands that say what failed, in an environment that knows nothing of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who has just arrived: an empty home, no setting of Ansible's or Git's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "GIT_", "PYTHONPATH"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "ANSIBLE_NOCOLOR": "1", **more}


def run(
    command: Sequence[str], cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command, its output kept."""
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def must(command: Sequence[str], cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """The command's output; the gate ends here when the command fails."""
    print(f"$ {' '.join(command)}    (in {cwd})", flush=True)
    done = run(command, cwd, environment)
    if done.returncode:
        print(done.stdout)
        sys.exit(f"exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


def quiet(output: str, what: str) -> None:
    """Ansible's warnings and deprecations are failures: today's warning is tomorrow's broken playbook."""
    bad = [line for line in output.splitlines() if line.startswith(("[WARNING]", "[DEPRECATION", "[ERROR]"))]
    if bad:
        sys.exit(f"{what} warns:\n" + "\n".join(bad))
