"""No tile that a product may take spills, on any generation of GPUs."""

import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import pytest

from .compile_tiles import KERNELS, WAYS, builds
from .compile_triton import ARCHITECTURES, ROOT, in_a_process

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
#: Bytes of stack that ptxas gives some builds, of 72 registers even: no register was short.
FRAME = 8
#: Builds that `make test` compiles, in under a minute of a processor's time.
FEW = 24


def check(share: int, of: int) -> list[dict[str, Any]]:
    text = in_a_process("tests.kernels.compile_tiles", f"{share}/{of}", cache=ROOT / "build/triton")
    found: list[dict[str, Any]] = json.loads(text)
    spilling = [build for build in found if build["STACK"] > FRAME or build["LOCAL"]]
    assert spilling == []
    assert [build for build in found if build["shared"] > 99 * 1024] == []
    return found


def test_a_share_of_the_tiles() -> None:
    every = [*builds()]
    # Every so many, but for the loops that are inside of the others to come out of step.
    of = len(every) // FEW | 1
    found = [build["build"] for build in check(0, of)]
    assert len(found) >= FEW
    assert {build["architecture"] for build in found} == set(ARCHITECTURES)
    assert {build["kind"] for build in found} > {"norm_relu_conv", "grad", "weight"}


@pytest.mark.tiles
@pytest.mark.parametrize("share", range(SHARES := 60))
def test_all_tiles(share: int) -> None:
    check(share, SHARES)


def test_every_kind_and_way_is_among_them() -> None:
    found: Sequence[Any] = [*builds()]
    assert {build.kind for build in found} == set(KERNELS)
    assert {build.way for build in found} == set(WAYS)
