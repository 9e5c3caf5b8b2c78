"""Several pytest processes share a suite: ``python -m tests.shares 8 -m gpu`` runs it in eight.

For machines that have pytest and nothing beside. Each process collects every test and claims the
next few of one function, as long as some are left, by a file that only one of them can make. Whose
tests take long claims fewer; those of one function stay together, as they need the same kernels.

After an access out of bounds CUDA refuses a process everything, for ever: it would claim all tests
that are left and fail each at once. It gives back what it has not begun and ends, and another takes
its place.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest

#: Tests of one function that are claimed at a time.
CLAIM = 12
#: Seconds that processes have to end in after Ctrl-C.
GRACE = 8
#: Seconds between two looks at the processes, and how many may take the place of another.
LOOK, MOST_ANEW = 0.1, 20
#: What pytest calls the ways a test ends, in its last line.
ENDED = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")


def pytest_addoption(parser: pytest.Parser) -> None:
    heed_ctrl_c()
    parser.addoption("--share", type=Path, metavar="FOLDER", help="run what no other has claimed")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    folder = session.config.getoption("--share")
    if folder is None or session.config.option.collectonly:
        return None
    order, held, begun = in_order(session.items), list[str](), set[str]()
    mine = claimed(order, folder, held)
    item = next(mine, None)
    while item is not None:
        # Claimed before this one ends: what both need stays set up.
        following = next(mine, None)
        failed = session.testsfailed
        begun.add(item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed > failed and (reason := lost()):
            give_back(order, folder, held, begun)
            (folder / f"lost-{os.getpid()}").touch()
            raise session.Interrupted(f"after {item.nodeid}: {reason}")
        if session.shouldfail or session.shouldstop:
            raise session.Interrupted(session.shouldfail or session.shouldstop)
        item = following
    return True


def lost() -> str:
    """Why this process can do nothing on its GPU any more; empty where it can, or uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def in_order(items: Sequence[pytest.Item]) -> list[tuple[str, pytest.Item]]:
    """The tests, the long ones first, each after the name of the claim that it belongs to."""
    seen: Counter[str] = Counter()
    order = []
    for item in sorted(items, key=lambda item: "kernels" in item.path.parts):
        function = item.nodeid.partition("[")[0]
        order.append((f"{function}-{seen[function] // CLAIM}".replace("/", "."), item))
        seen[function] += 1
    return order


def claimed(
    order: Sequence[tuple[str, pytest.Item]], folder: Path, held: list[str]
) -> Iterator[pytest.Item]:
    """Those tests that this process is the first to claim; what it claims goes to ``held``."""
    asked: set[str] = set()
    done: set[str] = set()
    for claim, item in order:
        if claim not in asked:
            asked.add(claim)
            if first(folder / claim):
                held.append(claim)
                if (before := folder / f"{claim}.begun").exists():
                    done.update(before.read_text().splitlines())
        if claim in held and item.nodeid not in done:
            yield item


def give_back(
    order: Sequence[tuple[str, pytest.Item]],
    folder: Path,
    held: Sequence[str],
    begun: Collection[str],
) -> None:
    """Leaves to a later process what this one has claimed and not begun."""
    for claim in held:
        tests = [item.nodeid for other, item in order if other == claim]
        over = [name for name in tests if name in begun]
        if len(over) < len(tests):
            before = folder / f"{claim}.begun"
            with before.open("a") as file:  # an earlier one may have begun others
                file.writelines(f"{name}\n" for name in over)
            (folder / claim).unlink()


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
        # A file that cannot be imported fails; the others are what the run is for.
        command += ["--continue-on-collection-errors"]
        command += ["--share", str(claims), *options]
        logs: list[Path] = []

        def begin() -> "subprocess.Popen[bytes]":
            logs.append(Path(folder, f"{len(logs)}.log"))
            with logs[-1].open("wb") as to:
                return subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT)

        codes = ended(begin, processes, claims)
        texts = [log.read_text(errors="replace") for log in logs]
    counts: Counter[str] = Counter()
    for text in texts:
        body, _, last = text.rstrip().rpartition("\n")
        print("\n".join(telling(body)))
        counts.update({name: int(count) for count, name in ENDED.findall(last)})
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{processes} processes: {found or 'nothing ended'}; exit codes {sorted(set(codes))}")
    return max(codes, key=abs)


def ended(
    begin: Callable[[], "subprocess.Popen[bytes]"], processes: int, claims: Path
) -> list[int]:
    """The exit codes of processes, which Ctrl-C has ended too where it ends this one's waiting.

    For each that has lost its GPU another is begun.
    """
    running = [begin() for _ in range(processes)]
    waiting = list(running)
    try:
        while waiting:
            time.sleep(LOOK)
            for process in [process for process in waiting if process.poll() is not None]:
                waiting.remove(process)
                is_lost = (claims / f"lost-{process.pid}").exists()
                if is_lost and len(running) < processes + MOST_ANEW:
                    running.append(begin())
                    waiting.append(running[-1])
    except KeyboardInterrupt:
        until = time.monotonic() + GRACE
        for process in waiting:
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
