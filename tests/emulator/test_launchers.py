"""The CUDA launchers on random cases, watched and not, and what must be noticed of broken ones.

A share runs always; ``make emulate`` runs all, in tens of minutes.
"""

from pathlib import Path

import pytest

from . import build, mutations, run
from .launchers import LAUNCHERS
from .mutations import Mutation

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))


def check(kind: str, *options: str) -> str:
    right, printed = run.run(kind, *options)
    assert right, printed[-6000:]
    return printed


@pytest.mark.parametrize(("kind", "orders"), [("fast", "3"), ("race", "2")])
def test_a_share_of_the_cases(kind: str, orders: str) -> None:
    printed = check(kind, "--random", "--cases=5", "--seconds=3600", f"--orders={orders}")
    for name in LAUNCHERS:
        assert f"'{name}': " in printed, f"{name} has no random case"


@pytest.mark.emulate
def test_every_kernel_is_entered() -> None:
    printed = check("fast", "--seconds=1500", "--many")
    assert printed.rstrip().endswith("never entered: none")


@pytest.mark.emulate
@pytest.mark.parametrize("seed", [101, 102])
@pytest.mark.parametrize("kind", ["race", "asan"])
def test_all_cases(kind: str, seed: int) -> None:
    check(kind, "--seconds=240", f"--seed={seed}", "--orders=2")


@pytest.mark.emulate
def test_huge() -> None:
    check("huge", "--cases=1500")


@pytest.mark.emulate
@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.what)
def test_a_mutation_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    m = mutation
    library = build.mutated(m.kind, m.unit, m.file, m.old, m.new, tmp_path)
    options = ("--random", f"--only={m.only}", f"--cases={m.cases}", "--seconds=300")
    right, printed = run.run(m.kind, *options, f"--library={library}")
    assert not right, f"{m.what}: not noticed\n{printed[-2000:]}"
    assert "Traceback" not in printed, printed[-3000:]


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.what)
def test_a_mutation_has_a_place(mutation: Mutation) -> None:
    """Of a kernel that was rewritten, too, the mutation must say where it is to be broken."""
    assert mutation.old in (build.ROOT / "csrc/cuda" / mutation.file).read_text()
