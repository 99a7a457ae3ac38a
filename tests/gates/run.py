# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the stages of a set, two at a time, and sums up: run.py [--list] SET...

The tests of the scenario `cluster` run last and alone, because they measure times under load. Its hosts are made and
converged before that, beside the other scenarios. In a set that has it, stages that start no daemon run beside all
others from the beginning, one at a time and with what the others leave of the processors.

Sets: lint, package, unit, component, molecule; fast (lint, unit, component), all (every one), full (all, with the tests
marked `full` and every scenario on both Debian releases). `molecule:redis` is one scenario.

A stage's whole output is in .build/logs/<stage>.log; of a stage that fails the end is shown. The last line is
`N passed, N failed`: tests as pytest counts them, plus one for each gate and each scenario.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
LOGS = BUILD / "logs"
BIN = Path(sys.executable).parent
SETS = ("lint", "package", "unit", "component", "molecule")
FAST = ("lint", "unit", "component")
JOBS = int(os.environ.get("TEST_JOBS", "2"))
# Scenarios that `make test` runs on Debian 12, so that it meets both releases; `make test-full` runs each on both.
ON_DEBIAN_12 = ("single",)
# Scenarios that only `make test-full` runs, or who asks for one by name.
FULL_ONLY = ("tls",)
# The stages that take longest, in that order.
LONGEST = (
    "molecule:cluster",
    "molecule:prometheus",
    "component",
    "molecule:postgresql",
    "molecule:cluster:made",
    "molecule:redis",
    "molecule:haproxy",
    "molecule:single",
    "molecule:django",
    "molecule:nginx_static",
)
DOCS_LINT = ("lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "self", ".")
TAIL = 40
# pytest's last line, with or without its frame: "=== 1 failed, 3 passed in 3.20s ===", "4 passed in 65.01s (0:01:05)".
COUNT = re.compile(r"^(?:=+ )?(\d+ [a-z]+(?:, \d+ [a-z]+)*) in [\d.]+s(?: \([\d:]+\))?(?: =+)?$", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Stage:
    """One command whose exit code decides, and where to read how many tests that was."""

    name: str
    command: tuple[str, ...]
    minutes: float = 10
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name.replace(':', '-')}.log"

    @property
    def junit(self) -> Path:
        return self.log.with_suffix(".xml")

    @property
    def has_daemons(self) -> bool:
        return self.name == "component" or self.name.startswith("molecule:")

    def in_the_background(self) -> Stage:
        return replace(self, command=("nice", "-n", "19", *self.command), minutes=4 * self.minutes)


@dataclass
class Result:
    stage: Stage
    code: int
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def tests_that_failed(self) -> list[str]:
        """pytest's lines about them, with the reason's beginning."""
        text = COLOUR.sub("", self.stage.log.read_text(encoding="utf-8", errors="replace"))
        return [line for line in text.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))]


def _tool(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(BIN / name), *arguments)


def _gate(name: str) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "tests" / "gates" / f"{name}.py"))


def lint() -> list[Stage]:
    """The slowest first, so that the two at a time end together."""
    return [
        Stage("ansible-lint", _tool("ansible-lint", "--nocolor", "-q")),
        Stage("syntax", _gate("syntax")),
        Stage("mypy", _tool("mypy")),
        Stage("collection-docs", _tool("antsibull-docs", *DOCS_LINT)),
        Stage("yamllint", _tool("yamllint", "--strict", ".")),
        Stage("changelog", _tool("antsibull-changelog", "lint")),
        Stage("ruff-check", _tool("ruff", "check", "--no-fix", ".")),
        Stage("ruff-format", _tool("ruff", "format", "--check", ".")),
    ]


def package() -> list[Stage]:
    return [Stage("package", _gate("package")), Stage("clone", _gate("clone"))]


def _pytest(name: str, full: bool) -> list[Stage]:
    if not any((ROOT / "tests" / name).glob("**/test_*.py")):
        return []
    stage = Stage(name, (), minutes=40 if full else 20)
    marks = ("-m", "full or not full") if full else ()
    command = _tool("pytest", "-q", f"--junitxml={stage.junit}", "--durations=5", *marks, f"tests/{name}")
    return [Stage(name, command, stage.minutes)]


def scenarios() -> list[str]:
    """Every scenario, the whole cluster last: what is wrong with one tier shows sooner in that tier's own."""
    names = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    return sorted(names, key=lambda name: (name in ("single", "cluster"), name == "cluster", name))


def _in_two(stage: Stage, name: str) -> list[Stage]:
    """What `molecule test` does, as two stages. The lab stays between them if it was made well."""
    destroy, converge, idempotence, verify = (
        f"molecule {step} -s {name}" for step in ("destroy", "converge", "idempotence", "verify")
    )
    return [
        replace(
            stage,
            name=stage.name.replace(":debian", ":made:debian"),
            command=("sh", "-c", f"{destroy} && {converge} && {idempotence} || {{ {destroy}; exit 1; }}"),
        ),
        replace(
            stage, command=("sh", "-c", f"test -d .lab/molecule-{name} && {verify}; code=$?; {destroy}; exit $code")
        ),
    ]


def molecule(full: bool, only: str | None = None) -> list[Stage]:
    stages = []
    for name in scenarios():
        if only not in (None, name) or (name in FULL_ONLY and not full and only is None):
            continue
        default = os.environ.get("LAB_DEBIAN", "12" if name in ON_DEBIAN_12 else "13")
        releases = ["13", "12"] if full else [default]
        for release in releases:
            environment = {"LAB_DEBIAN": release}
            if full:
                environment["PYTEST_ADDOPTS"] = "-m 'full or not full'"
            label = f"molecule:{name}:debian{release}"
            minutes = (180 if full else 60) if name == "cluster" else (60 if full else 30)
            stage = Stage(label, _tool("molecule", "test", "-s", name), minutes, environment)
            stages += [stage] if full or name != "cluster" else _in_two(stage, name)
    return stages


def apart(stages: list[Stage]) -> tuple[list[Stage], list[Stage]]:
    """What takes its turn, and what runs in the background, so that the cluster's tests find the processors free."""
    if not any(stage.name.startswith("molecule:cluster:") for stage in stages):
        return stages, []
    background = [stage.in_the_background() for stage in stages if not stage.has_daemons]
    return [stage for stage in stages if stage.has_daemons], background


def in_turns(stages: list[Stage]) -> list[list[Stage]]:
    """What may run side by side, turn after turn, in each the longest first, so that the two at a time end together.

    The two Debian releases of a scenario use the same lab, and a run of the cluster measures times under load.
    """

    def turn(stage: Stage) -> int:
        name, _, release = stage.name.partition(":debian")
        if name == "molecule:cluster":
            return 2 + (release == "12" and name in twice)
        return int(name in twice and release == "12")

    def length(stage: Stage) -> int:
        name = stage.name.partition(":debian")[0]
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    names = [stage.name.partition(":debian")[0] for stage in stages]
    twice = {name for name in names if names.count(name) > 1}
    found = [[stage for stage in sorted(stages, key=length) if turn(stage) == number] for number in range(4)]
    return [part for part in found if part]


def _count_junit(result: Result) -> None:
    try:
        suites = ElementTree.parse(result.stage.junit).getroot().iter("testsuite")
        counts = [
            {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} for suite in suites
        ]
    except (OSError, ElementTree.ParseError):
        counts = []
    result.skipped = sum(count["skipped"] for count in counts)
    result.failed = sum(count["failures"] + count["errors"] for count in counts)
    result.passed = sum(count["tests"] for count in counts) - result.failed - result.skipped
    # A run that broke off, or that ran nothing, is a failure of its own.
    if result.code and not result.failed:
        result.failed = 1


def _count_molecule(result: Result) -> None:
    """Making, converging and removing count as one, the scenario's testinfra tests as what they are."""
    text = COLOUR.sub("", result.stage.log.read_text(encoding="utf-8", errors="replace"))
    for line in COUNT.findall(text):
        for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", line):
            key = "failed" if word == "error" else word
            setattr(result, key, getattr(result, key) + int(number))
    if result.code == 0:
        result.passed += 1
    elif not result.failed:
        result.failed = 1


class Runner:
    """Starts stages, and ends them all when it is interrupted."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, stages: list[Stage], jobs: int) -> None:
        with self.beside(stages, jobs):
            pass

    @contextlib.contextmanager
    def beside(self, stages: list[Stage], jobs: int = 1) -> Iterator[None]:
        """Stages that run during the block; its end waits for them."""
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                futures = [pool.submit(self._run, stage) for stage in stages]
                yield
                for future in futures:
                    future.result()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                self._signal(process, signal.SIGTERM)

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def _run(self, stage: Stage) -> None:
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **stage.environment,
        }
        stage.junit.unlink(missing_ok=True)
        started = time.monotonic()
        with stage.log.open("wb") as log:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    stage.command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                code = process.wait(timeout=stage.minutes * 60)
            except subprocess.TimeoutExpired:
                self._signal(process, signal.SIGTERM)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    self._signal(process, signal.SIGKILL)
                    process.wait()
                code = -1
                log.write(f"\nended after {stage.minutes:g} minutes\n".encode())
            with self._lock:
                self._running.discard(process)
        self._finish(Result(stage, code, time.monotonic() - started))

    def _finish(self, result: Result) -> None:
        name = result.stage.name
        if name in ("unit", "component"):
            _count_junit(result)
        elif name.startswith("molecule:"):
            _count_molecule(result)
        else:
            result.passed, result.failed = int(result.code == 0), int(result.code != 0)
        counts = f"{result.passed} passed" + (f", {result.failed} failed" if result.failed else "")
        counts += f", {result.skipped} skipped" if result.skipped else ""
        word = "FAILED" if result.code else "ok"
        with self._lock:
            self.results.append(result)
            print(f"{name:<34}{result.seconds:8.1f} s  {word:<7} {counts}", flush=True)
            if result.code:
                lines = result.stage.log.read_text(encoding="utf-8", errors="replace").splitlines()
                # pytest's reasons, which stand far above the end: below them molecule removes the hosts.
                reasons = [line for line in lines if line.startswith("E  ")]
                shown = reasons[-TAIL:] + lines[-3:] if reasons else lines[-TAIL:]
                print("\n".join(f"    {line}" for line in shown))
                print(f"    (all of it: {result.stage.log.relative_to(ROOT)})", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"fast, all, full, {', '.join(SETS)}, molecule:NAME"
    parser.add_argument("sets", nargs="+", metavar="SET", help=names)
    parser.add_argument("--list", action="store_true", help="name the stages and run nothing")
    arguments = parser.parse_args()

    full = "full" in arguments.sets
    wanted = [part for name in arguments.sets for part in {"fast": FAST, "all": SETS, "full": SETS}.get(name, (name,))]
    stages: list[Stage] = []
    for name in dict.fromkeys(wanted):
        if name == "molecule" or name.startswith("molecule:"):
            found = molecule(full, name.partition(":")[2] or None)
            if not found:
                parser.error(f"there is no scenario for {name!r}; there are: {', '.join(scenarios()) or 'none'}")
            stages += found
        elif name in ("unit", "component"):
            stages += _pytest(name, full)
        elif name in ("lint", "package"):
            stages += lint() if name == "lint" else package()
        else:
            parser.error(f"there is no set {name!r}; there are: {names}")
    stages, background = apart(stages)
    turns = in_turns(stages)
    if arguments.list:
        print("\n".join(stage.name for stage in chain(background, *turns)))
        return 0

    LOGS.mkdir(parents=True, exist_ok=True)
    runner = Runner()
    started = time.monotonic()
    try:
        with runner.beside(background):
            for turn in turns:
                runner.run(turn, JOBS)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

    results = runner.results
    failed = [result.stage.name for result in results if result.code or result.failed]
    print(f"\n{len(results)} stages in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {', '.join(sorted(failed))}")
        lines = [line for result in results if result.code for line in result.tests_that_failed()]
        print("".join(f"    {line}\n" for line in lines), end="")
    total = {key: sum(getattr(result, key) for result in results) for key in ("passed", "failed", "skipped")}
    print(
        f"{total['passed']} passed, {total['failed']} failed"
        + (f", {total['skipped']} skipped" if total["skipped"] else "")
    )
    return 1 if failed or not results else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
