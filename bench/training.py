"""A result file of one training, for its table and its curves.

    python -m bench.training runs/cifar --name cifar-fast --data-name "CIFAR-10 (JPEG)" \\
        --result bench/results/training-cifar.json

Reads ``run.json`` and ``metrics.csv`` of a folder that ``ran train`` wrote, on the machine that
trained. The file holds the settings that a result depends on, every epoch, and no local path.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import describe, summary
from bench.markdown import line
from bench.results_file import write
from ran.files import read_json

#: Settings that say where and how a training is stored and fed, which changes no result.
_LOCAL = {
    "data",
    "output",
    "overwrite",
    "resume",
    "download",
    "workers",
    "checkpoint_steps",
    "keep_every",
}


def collected(folder: Path, name: str, data: str, commit: str | None) -> dict[str, Any]:
    """The content of a result file.

    Args:
        folder: that the training wrote.
        name: of the training, for the table.
        data: what it was trained on, instead of the path.
        commit: that trained, if not the one checked out.
    """
    run = read_json(folder / "run.json", format="ran-run", version=1)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    settings = {
        key: value
        for key, value in run["settings"].items()
        if key not in _LOCAL and value is not None
    }
    machine = describe() | {"python": run["versions"]["python"], "torch": run["versions"]["torch"]}
    machine["threads"] = settings.get("threads", machine["threads"])
    if commit:
        machine["commit"] = commit
    return {
        "kind": "training",
        "machine": machine,
        "versions": run["versions"],
        "name": name,
        "data": data,
        "settings": settings,
        "parameters": run["results"]["parameters"],
        "images_per_second": median(row["images_per_second"] for row in rows),
        "seconds": rows[-1]["seconds"],
        "epochs": rows,
    }


def training(content: dict[str, Any]) -> str:
    """One line: accuracies, length, time and size of a training."""
    rows = content["epochs"]
    best = max(rows, key=lambda row: row["test_accuracy"])
    headings = ("training", "network", "data", "parameters", "epochs", "last epoch, test accuracy")
    return "\n".join(
        [
            summary(content["machine"]),
            "",
            line(*headings, "best epoch, test accuracy", "images/s", "hours"),
            "|---|---|---|--:|--:|--:|--:|--:|--:|",
            line(
                content["name"],
                content["settings"]["model"],
                content["data"],
                f"{content['parameters']:,}",
                f"{rows[-1]['epoch']:.0f}",
                f"{rows[-1]['test_accuracy']:.2%}",
                f"{best['test_accuracy']:.2%} ({best['epoch']:.0f})",
                f"{content['images_per_second']:,.0f}",
                f"{content['seconds'] / 3600:.1f}",
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.training")
    parser.add_argument("folder", type=Path, help="that `ran train` wrote")
    parser.add_argument("--name", required=True, help="of the training, for the table")
    parser.add_argument("--data-name", required=True, help="what it was trained on, in words")
    parser.add_argument("--commit", help="that trained, if not the one checked out")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args(arguments)
    content = collected(given.folder, given.name, given.data_name, given.commit)
    write(given.result, content)
    print(training(content))


if __name__ == "__main__":
    main()
