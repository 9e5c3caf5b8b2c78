"""The options that the benchmarks of networks share."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.compare import default_device

DTYPES = ("float32", "bfloat16")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``--rounds``, ``--device`` and ``--result``, of a benchmark that continues a result file."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--result", type=Path, help="JSON file to write or to continue")


def add_options(
    parser: argparse.ArgumentParser, networks: Sequence[str], variants: Collection[str]
) -> None:
    """Those of a benchmark of ``variants``: what is run beside ``add_run_options``."""
    parser.add_argument("--network", action="append", help=f"repeatable; {', '.join(networks)}")
    parser.add_argument("--variant", action="append", choices=variants, help="repeatable; all")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    add_run_options(parser)


def variants_of(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    variants: Collection[str],
    only_on_a_gpu: Collection[str],
    needed: Collection[str],
) -> list[str]:
    """Those asked for, which ends the program unless all ``needed`` are among them.

    By default all, of which some are ``only_on_a_gpu``.
    """
    gpu = (given.device or default_device()) == "cuda"
    chosen = given.variant or [name for name in variants if gpu or name not in only_on_a_gpu]
    if missing := set(needed) - set(chosen):
        parser.error(f"--variant: expected {' and '.join(sorted(missing))} among them")
    return chosen
