"""Several pytest processes share a suite: ``python -m tests.shares 8 -m gpu`` runs it in eight.

For machines that have pytest and nothing beside. Each process collects every test and claims the
next few of one function, as long as some are left, by a file that only one of them can make. Whose
tests take long claims fewer; those of one function stay together, as they need the same kernels.
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

#: Tests of one function that are claimed at a time.
CLAIM = 12
#: Seconds that processes have to end in after Ctrl-C.
GRACE = 8
#: What pytest calls the ways a test ends, in its last line.
ENDED = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")


def pytest_addoption(parser: pytest.Parser) -> None:
    heed_ctrl_c()
    parser.addoption("--share", type=Path, metavar="FOLDER", help="run what no other has claimed")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    folder = session.config.getoption("--share")
    if folder is None or session.testsfailed or session.config.option.collectonly:
        return None
    mine = claimed(session.items, folder)
    item = next(mine, None)
    while item is not None:
        # Claimed before this one ends: what both need stays set up.
        following = next(mine, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail or session.shouldstop:
            raise session.Interrupted(session.shouldfail or session.shouldstop)
        item = following
    return True


def claimed(items: Sequence[pytest.Item], folder: Path) -> Iterator[pytest.Item]:
    """Those of ``items`` that this process is the first to claim, the long ones first."""
    seen: Counter[str] = Counter()
    mine: dict[str, bool] = {}
    for item in sorted(items, key=lambda item: "kernels" in item.path.parts):
        function = item.nodeid.partition("[")[0]
        claim = f"{function}-{seen[function] // CLAIM}".replace("/", ".")
        seen[function] += 1
        if claim not in mine:
            mine[claim] = first(folder / claim)
        if mine[claim]:
            yield item


def first(path: Path) -> bool:
    """Whether this process makes the file, and no other has before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def heed_ctrl_c() -> None:
    """Has SIGINT raise KeyboardInterrupt, which a shell's background jobs are born deaf to."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(processes: int, options: Sequence[str]) -> int:
    """Runs the suite in so many processes; prints what failed and the counts; an exit code."""
    heed_ctrl_c()
    with tempfile.TemporaryDirectory() as folder:
        claims = Path(folder, "claims")
        claims.mkdir()
        command = [sys.executable, "-m", "pytest", "-p", "tests.shares", "-v"]
        command += ["--share", str(claims), *options]
        logs = [Path(folder, f"{index}.log") for index in range(processes)]
        running = []
        for log in logs:
            with log.open("wb") as to:
                running.append(subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT))
        codes = ended(running)
        texts = [log.read_text(errors="replace") for log in logs]
    counts: Counter[str] = Counter()
    for text in texts:
        body, _, last = text.rstrip().rpartition("\n")
        print("\n".join(telling(body)))
        counts.update({name: int(count) for count, name in ENDED.findall(last)})
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{processes} processes: {found or 'nothing ended'}; exit codes {sorted(set(codes))}")
    return max(codes, key=abs)


def ended(running: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """The exit codes of processes, which Ctrl-C has ended too where it ends this one's waiting."""
    try:
        return [process.wait() for process in running]
    except KeyboardInterrupt:
        until = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in running]


def telling(log: str) -> list[str]:
    """The lines of a log that say more than that a test passed or was skipped."""
    return [line for line in log.splitlines() if not re.search(r" (PASSED|SKIPPED)\b", line)]


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
