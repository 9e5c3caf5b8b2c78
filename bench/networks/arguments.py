"""The options that the benchmarks of networks share."""

import argparse
from pathlib import Path


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``--rounds``, ``--device`` and ``--result``, of a benchmark that continues a result file."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write or to continue")
