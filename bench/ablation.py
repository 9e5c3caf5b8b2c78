"""The paper's ablation in small: attention types, and residual against naive learning, on digits.

``python -m bench.ablation -o bench/results/ablation-digits.json`` trains the recipe ``digits`` once
for each variant and seed, on one core, and prints the last epoch's test accuracy as mean ±
deviation over the seeds (the last, not the best: its choice owes nothing to the test images).
Trainings that a halt cut off, or that are done, are not repeated: the same command goes on.

Variants, as in the paper's section 4.1: mixed, channel and spatial attention with residual
learning, (1 + M) · T, and mixed attention with naive learning, M · T; ``--all`` takes the naive
ones of channel and spatial attention too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ran.text import plural

from .machine import describe, summary
from .markdown import line
from .results_file import write

ACTIVATIONS = ("mixed", "channel", "spatial")


def variants(*, every: bool) -> dict[str, dict[str, Any]]:
    """Model options by the name of the variant."""
    found = {
        f"{activation} {'ARL' if residual else 'NAL'}": {
            "activation": activation,
            "residual": residual,
        }
        for residual in (True, False)
        for activation in ACTIVATIONS
    }
    return found if every else {name: found[name] for name in list(found)[: len(ACTIVATIONS) + 1]}


def run(folder: Path, options: dict[str, Any], seed: int, epochs: int) -> dict[str, float]:
    """The last row of a training's table, in a process of its own."""
    command = [sys.executable, "-m", "ran", "train", "digits", "--resume"]
    command += ["--output", str(folder), "--seed", str(seed), "--epochs", str(epochs)]
    command += ["--device", "cpu"]
    for name, value in options.items():
        command += ["--set", f"model_options.{name}={json.dumps(value)}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((folder / "run.json").read_text())["results"]
    return results["last"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder to use")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="all six variants")
    arguments = parser.parse_args()

    chosen = variants(every=arguments.all)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    # seed by seed, so that a halt leaves every variant with as many
    for seed in range(arguments.seeds):
        for name, options in chosen.items():
            folder = arguments.runs / f"{name.replace(' ', '-')}-{arguments.epochs}-{seed}"
            rows[name].append(run(folder, options, seed, arguments.epochs))
            print(f"{name:12} seed {seed}: {rows[name][-1]['test_accuracy']:.2%}", flush=True)
        write(arguments.output, _result(rows, arguments.epochs))
    print(table(_result(rows, arguments.epochs)))


def table(content: dict[str, Any]) -> str:
    """One line for a variant: the test accuracy over the seeds, and of every seed."""
    epochs = f"mean ± deviation after {plural(content['epochs'], 'epoch')}"
    lines = [summary(content["machine"]), "", line("variant", epochs, "every seed")]
    lines.append("|---|--:|---|")
    for name, found in content["variants"].items():
        seeds = ", ".join(f"{accuracy:.2%}" for accuracy in found["test_accuracy_by_seed"])
        lines.append(line(name, f"{found['mean']:.2%} ± {found['deviation']:.2%}", seeds))
    return "\n".join(lines)


def _result(rows: dict[str, list[dict[str, float]]], epochs: int) -> dict[str, Any]:
    variants = {}
    for name, found in rows.items():
        accuracy = [row["test_accuracy"] for row in found]
        variants[name] = {
            "mean": statistics.mean(accuracy),
            "deviation": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
            "test_accuracy_by_seed": accuracy,
        }
    return {
        "kind": "ablation",
        "what": "test accuracy of the last epoch, recipe digits",
        "epochs": epochs,
        "machine": describe(),
        "variants": variants,
    }


if __name__ == "__main__":
    main()
