"""What a result was measured on and with."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ran.text import plural

#: The commit where there is no git, or no repository.
UNKNOWN = "unknown"


def describe() -> dict[str, Any]:
    """Date, commit, machine, chip and versions, for the head of a result file."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "chip": torch.cuda.get_device_name() if cuda else _cpu(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda if cuda else None,
    }


def summary(machine: dict[str, Any]) -> str:
    """The line above a table: what it was measured on."""
    return (
        f"{machine['chip']}, {plural(machine['threads'], 'thread')}, {machine['instructions']}, "
        f"torch {machine['torch']}, {machine['date'][:10]}, commit {machine['commit']}."
    )


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    # Result files are no sources: a benchmark that has written one is still of the same commit.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return (commit or UNKNOWN) + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).parents[1]
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git
        return ""
    return run.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
