"""Which images come when, in one process, in several, and after a halt."""

from pathlib import Path

import pytest
import torch

from ran.data import load_data
from ran.data.options import DataOptions
from ran.data.order import Draw, TestOrder, TrainingOrder, seed_of
from ran.errors import UserError
from tests.tiny import make_folder


def flat(order: TrainingOrder) -> list[int]:
    return [index for draw in order for index in draw]


def test_every_epoch_has_an_order_of_its_own_and_no_image_twice() -> None:
    order = TrainingOrder(103, 10, seed=3)
    first, second = flat(order), flat(order)
    assert len(order) == 10
    assert len(set(first)) == len(first) == 100
    assert first != second
    assert flat(TrainingOrder(103, 10, seed=3)) == first
    assert flat(TrainingOrder(103, 10, seed=4)) != first


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_processes_and_parts_share_the_images_of_the_same_steps(processes: int, parts: int) -> None:
    whole = list(TrainingOrder(100, 12, seed=5))
    shares = [
        list(TrainingOrder(100, 12, seed=5, parts=parts, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        together = [
            index
            for part in range(parts)
            for share in shares
            for index in share[step * parts + part]
        ]
        assert together == batch
    seeds = [draw.seed for share in shares for draw in share]
    assert len(set(seeds)) == len(seeds)


def test_an_order_goes_on_after_the_batches_that_are_done() -> None:
    done = 0
    order = TrainingOrder(50, 8, seed=1, done=lambda: done)
    epochs = [list(order)]
    done = len(order)
    epochs.append(list(order))
    done = len(order) + 4
    rest = list(order)
    assert rest == epochs[1][4:]
    assert [draw.seed for draw in rest] == [draw.seed for draw in epochs[1][4:]]


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert [len(draw) for draw in TrainingOrder(5, 64)] == [5]
    assert [len(draw) for draw in TrainingOrder(5, 64, processes=2)] == [2]


@pytest.mark.parametrize(("batch_size", "shares"), [(10, 3), (2, 4)])
def test_what_cannot_be_shared_is_refused(batch_size: int, shares: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of {shares}"):
        TrainingOrder(100, batch_size, processes=shares)
    with pytest.raises(UserError, match=f"batch_size: expected a multiple of {shares}"):
        load_data("digits", 8).train_loader(batch_size, parts=shares)


@pytest.mark.parametrize(("images", "processes"), [(10, 1), (10, 2), (17, 2), (9, 4), (4, 4)])
def test_a_test_has_every_image_once_in_equally_many_batches(images: int, processes: int) -> None:
    orders = [
        list(TestOrder(images, 4, rank=rank, processes=processes)) for rank in range(processes)
    ]
    found = sorted(index for order in orders for batch in order for index in batch)
    assert found == list(range(images))
    assert len({len(order) for order in orders}) == 1
    assert all(0 < len(batch) <= 4 for order in orders for batch in order)


def test_no_process_tests_an_empty_batch_whose_loss_is_no_number() -> None:
    orders = [list(TestOrder(5, 1, rank=rank, processes=2)) for rank in range(2)]
    assert [[len(batch) for batch in order] for order in orders] == [[2, 1], [1, 1]]


def test_seeds_are_known_and_unlike() -> None:
    assert seed_of(0, 1) == 3964924996
    assert len({seed_of(0, step) for step in range(1000)}) == 1000
    draw = Draw([3, 1], seed=7)
    assert (draw, draw.seed) == ([3, 1], 7)


def test_random_crops_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    batches = []
    for workers in (0, 2):
        options = DataOptions(workers=workers)
        data = load_data(f"folder:{root}", 16, "scale-flip", options)
        torch.manual_seed(workers)  # what happened before is of no importance
        batches.append([images for images, _ in data.train_loader(2, seed=3)])
    assert len(batches[0]) == 4
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))
    assert not torch.equal(batches[0][0], batches[0][1])
