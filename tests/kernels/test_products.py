"""Tiles of matrix products: the model that chooses them, and the file that knows better."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import ran_kernels
from ran_kernels import Convolution

from .cbam_cases import features
from .harness import Place, triton_only
from .norm_cases import affine

products: Any = importlib.import_module("ran_kernels.triton.products")
tuned: Any = importlib.import_module("ran_kernels.triton.tuned")
Problem, Tile = products.Problem, products.Tile
CPU = torch.device("cpu")


def test_tiles_follow_the_shape() -> None:
    def sides(*shape: int, size: int = 2, **beside: Any) -> tuple[int, int]:
        tile = products.choose(Problem("norm_relu_conv", *shape, size, **beside))
        return tile.rows, tile.columns

    assert sides(32 * 56 * 56, 256, 256) == (128, 128)  # the large one where there are enough of it
    assert sides(196, 1024, 256)[0] < 128  # small ones for one image
    assert sides(10**6, 64, 256) == (128, 64)  # none that is half empty
    # Beside an image and many numbers of each column a large accumulator has no registers.
    assert sides(32 * 56 * 56, 256, 64, images=3, numbers=6) == (128, 64)
    assert sides(64, 256, 128 * 56 * 56, splits=True) == (64, 128)
    assert sides(10**6, 256, 256, size=8) == (32, 32)
    weight = {"size": 4, "splits": True}
    assert sides(1024, 256, 25088, **weight) == (128, 64)
    assert sides(1024, 256, 25088, **weight, exact=True) == (32, 64)
    # What has no room for registers is none that is measured, either.
    accumulators = {
        tile.rows * tile.columns // tile.warps
        for tile in products.tiles_of(Problem("grad", 10**6, 256, 64, 2, images=3, numbers=6))
    }
    assert max(accumulators) == 128 * 64 // 8


def test_images_that_are_no_packs_take_tiles_of_few_loads() -> None:
    for size, multiple in ((2, 8), (4, 4), (8, 2)):
        for channels in (256, 256 - multiple):
            assert products.is_packed(Problem("conv", 7, channels, 256, size))
            assert products.is_packed(Problem("conv", 7, 256, channels, size))
            assert products.is_packed(Problem("weight", 256, channels, 7, size, splits=True))
        for channels in (256 + multiple // 2, 255, 3):
            for problem in (
                Problem("conv", 8, channels, 256, size),
                Problem("conv", 8, 256, channels, size),
                Problem("weight", channels, 256, 8, size, splits=True),
            ):
                assert not products.is_packed(problem)
                assert {*products.tiles_of(problem)} <= {*products.UNPACKED_TILES[size]}


def test_what_is_summed_over_is_shared_and_nothing_left_out() -> None:
    for inner in (1, 49, 12544, 401408, 3 * 10**6):
        for out, columns in ((64, 256), (1024, 256), (7, 5)):
            problem = Problem("weight", out, columns, inner, 2, splits=True)
            for tile in products.TILES[2]:
                splits, steps = products.splits_of(problem, tile)
                assert steps.bit_count() == 1
                assert (splits - 1) * steps * tile.inner < inner <= splits * steps * tile.inner
                assert splits <= products.MOST_SPLITS


def test_every_tile_fits_the_smallest_shared_memory() -> None:
    for of, channels in ((products.TILES, 64), (products.UNPACKED_TILES, 63)):
        for size, tiles in of.items():
            for tile in tiles:
                step = (tile.rows + tile.columns) * tile.inner * size
                assert step * tile.stages <= 99 * 1024
            assert products.tiles_of(Problem("conv", 64, channels, 64, size)) == list(tiles)
            assert products.tiles_of(Problem("conv", 64, 64, channels, size)) == list(tiles)
    # An operand of float32 beside one of 16 bits takes twice as much.
    for splits in (False, True):
        problem = Problem("weight", 256, 256, 401408, 2, splits=splits, wide=True)
        fitting = products.tiles_of(problem)
        assert products.choose(problem) in fitting
        for tile in fitting:
            sides = (tile.columns, tile.rows) if splits else (tile.rows, tile.columns)
            assert (4 * sides[0] + 2 * sides[1]) * tile.inner * tile.stages <= 99 * 1024


@triton_only
def test_an_image_of_float32_before_products_of_16_bits_is_told(place: Place) -> None:
    x = features((1, 6, 2, 3), torch.float32, place.device, "channels_last").requires_grad_()
    conv = Convolution(torch.randn(4, 6, 1, 1, device=place.device, requires_grad=True))
    low = torch.autocast(place.device, torch.bfloat16)
    with ran_kernels.backend("triton"), low, tuned.asked() as problems:
        _, ((y, _),) = ran_kernels.norm_relu_conv(x, None, None, convs=[conv], training=True)
        y.sum().backward()
    wide = {p.kind for p in problems if p.wide}
    assert wide == {"norm_relu_conv", "weight"}  # others read it after the product
    assert {p.element_size for p in problems} == {2}
    assert all(" wide: " in tuned.key_of(p) for p in problems if p.wide)


def test_estimates_are_of_bytes_and_products() -> None:
    """A product that memory bounds takes its bytes' time, one that it does not takes longer."""
    thin = Problem("norm_relu_conv", 401408, 64, 256, 2)
    tile = products.choose(thin)
    moved = 2 * 401408 * (64 + 256)
    assert products.estimate(thin, tile) == pytest.approx(moved / products.BANDWIDTH, rel=0.1)
    deep = Problem("norm_relu_conv", 25088, 2048, 2048, 2)
    least = 2 * 25088 * 2048 * 2048 / products.PEAK[2]
    assert least < products.estimate(deep, products.choose(deep)) < 3 * least


def step(device: str) -> Callable[[], Tensor]:
    """Every kind of product, forward and backward, and a gate."""
    x = features((1, 6, 2, 3), torch.float32, device, "channels_last").requires_grad_()
    weight, bias = (t.requires_grad_() for t in affine(x))
    convs = [
        Convolution(torch.randn(out, 6, 1, 1, device=device, requires_grad=True)) for out in (3, 12)
    ]

    def run() -> Tensor:
        total = torch.zeros((), device=device)
        for conv in convs:
            plain, ((y, _),) = ran_kernels.conv_statistics(x, convs=[conv])
            same, ((z, _),) = ran_kernels.norm_relu_conv(
                plain, None, None, weight, bias, convs=[conv], training=True
            )
            total = total + y.sin().sum() + z.sin().sum() + same.sum()
        total.backward()
        with torch.no_grad():
            gated = ran_kernels.conv_gate(
                x,
                convs[0].weight.flatten(1),
                None,
                x[:, :3].contiguous(memory_format=torch.channels_last),
            )
        return total + gated.sum()

    return run


@triton_only
def test_tuning_writes_what_products_take(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiles.json"
    monkeypatch.setenv("RAN_TILES", str(path))
    tuned.forget()
    run = step(place.device)
    calls: list[float] = []
    timed: set[str] = set()
    asked: set[Any] = set()

    def seconds(call: Callable[[], Any]) -> float:
        with tuned.asked() as problems:
            call()  # what is timed runs
        timed.update(map(tuned.key_of, problems))
        asked.update(problems)
        calls.append(-len(calls))
        return calls[-1]  # the last tile of each is the quickest

    with ran_kernels.backend("triton"):
        before = run()
        found = ran_kernels.tune(run, place.device, seconds=seconds)
        kinds = {key.split(":")[0].removesuffix(" exact") for key in found}
        assert kinds == {
            *("norm_relu_conv", "conv", "reduce", "grad", "conv_grad", "weight", "conv_weight"),
            "conv_gate",
        }
        assert timed == set(found)
        last = products.UNPACKED_TILES[4][-1]
        assert set(map(tuple, found.values())) == {(*vars(last).values(),)}
        assert len(calls) == sum(len(products.tiles_of(problem)) for problem in asked)
        assert json.loads(path.read_text()) == {"tiles": found}
        assert ran_kernels.tune(run, place.device, seconds=seconds) == {}  # it is all there
        with tuned.asked() as problems:
            torch.testing.assert_close(run(), before)
        assert {tuned.key_of(problem) for problem in problems} == set(found)
        assert {tuned.tile_of(problem, torch.device(place.device)) for problem in problems} == {
            last
        }
    tuned.forget()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", r"tiles.json: expected tiles as JSON, got JSONDecodeError"),
        ("[1]", r"tiles.json: expected tiles as JSON, got TypeError"),
        (
            '{"tiles": {"a": [1, 2, 3, 4, 5], "b": 1}}',
            r"expected tiles of this version, got 2 others",
        ),
        (
            '{"tiles": {"a": [[1], 2, 3, 4, 5], "b": {}}}',
            r"expected tiles of this version, got 2 others",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=message):
        assert tuned.read(path) == {}


def test_a_tile_that_does_not_run_here_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    monkeypatch.setenv("RAN_TILES", str(tmp_path / "tiles.json"))
    problem = Problem("conv", 64, 64, 64, 2)
    tiles = products.tiles_of(problem)

    def measured(*running: Any) -> dict[str, list[int]]:
        left = iter(tiles)

        def seconds(call: Callable[[], Any]) -> float:
            if (tile := next(left)) not in running:
                raise OutOfResources(1, 0, "shared memory")
            return tile.rows

        return ran_kernels.tune(lambda: tuned.tile_of(problem, CPU), CPU, seconds=seconds)

    with pytest.raises(OutOfResources):
        measured()
    assert list(measured(tiles[2], tiles[5]).values()) == [[*vars(tiles[5]).values()]]
    tuned.forget()


def test_a_files_tile_of_another_size_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be a product that has no room."""
    monkeypatch.setenv("RAN_TILES", str(tmp_path / "tiles.json"))
    problem = Problem("conv", 1000, 64, 64, 8)
    large = products.TILES[2][0]
    tuned.write(tmp_path / "tiles.json", {tuned.key_of(problem): large})
    assert tuned.tile_of(problem, CPU) == products.choose(problem)
    assert [*tmp_path.iterdir()] == [tmp_path / "tiles.json"]
    tuned.forget()


def test_two_processes_of_one_number_write_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that share a folder."""
    path, tile = tmp_path / "tiles.json", products.TILES[2][0]
    write_text = Path.write_text

    def interrupted(part: Path, text: str) -> int:
        monkeypatch.setattr(Path, "write_text", write_text)
        written = part.write_text(text)
        tuned.write(path, {"b": tile})
        return written

    monkeypatch.setattr(Path, "write_text", interrupted)
    tuned.write(path, {"a": tile})
    assert set(tuned.read(path)) == {"a"}  # the last, and the other's is measured again


def test_whoever_has_no_home_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RAN_TILES", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert tuned.file_of(torch.device("cuda", 0)) is None


def test_without_a_file_the_model_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAN_TILES", raising=False)
    tuned.forget()
    problem = Problem("norm_relu_conv", 1000, 64, 64, 2)
    assert tuned.tile_of(problem, CPU) == products.choose(problem)
    with pytest.raises(ValueError, match="device: expected a GPU, or a file's name in RAN_TILES"):
        ran_kernels.tune(lambda: None, "cpu")
