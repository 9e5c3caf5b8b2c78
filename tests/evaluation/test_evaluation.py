import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ran.data import ImageData, Preprocessing, load_data
from ran.data.digits import InMemory
from ran.errors import UserError
from ran.evaluation.evaluation import evaluate
from ran.evaluation.prediction import predict
from ran.evaluation.scores import Evaluation
from ran.pictures.plots import plot_confusion
from ran.training.run import TrainingResult
from ran.weights.network_card import NetworkCard, load_network, save_network
from tests.tiny import TINY_OPTIONS


def few(size: int = 16, count: int = 90) -> ImageData:
    """The first test digits."""
    data = load_data("digits", size)
    return dataclasses.replace(data, test=InMemory(*data.test.__getitems__(range(count))))


def by_hand(checkpoint: Path, data: ImageData, *, mirrored: bool = False) -> torch.Tensor:
    """The probabilities of the test images, computed without what is tested."""
    network, card = load_network(checkpoint)
    images, _ = data.test.__getitems__(range(len(data.test)))
    with torch.no_grad():
        found = network(card.preprocessing.normalize(images)).softmax(1)
        if mirrored:
            flipped = images.flip(-1)
            found = (found + network(card.preprocessing.normalize(flipped)).softmax(1)) / 2
    return found


@pytest.mark.parametrize(("size", "tta"), [(16, "none"), (24, "none"), (16, "flip")])
def test_counts_are_those_of_the_networks_outputs(
    trained: TrainingResult, size: int, tta: str
) -> None:
    data = few(size)
    probabilities = by_hand(trained.folder, data, mirrored=tta == "flip")
    _, labels = data.test.__getitems__(range(len(data.test)))
    found = evaluate(trained.folder, data, tta=tta, batch_size=32)
    predicted = probabilities.argmax(1)
    expected = np.zeros((10, 10), dtype=int)
    np.add.at(expected, (labels.numpy(), predicted.numpy()), 1)
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.top1 == pytest.approx((predicted == labels).double().mean().item())
    among = (probabilities.topk(5).indices == labels[:, None]).any(1)
    assert found.top5 == pytest.approx(among.double().mean().item())
    assert (found.images, found.image_size, found.tta) == (90, size, tta)
    assert found.images_per_second == pytest.approx(90 / found.seconds)
    if tta == "flip":
        assert not np.array_equal(found.confusion, evaluate(trained.folder, data).confusion)


def test_all_test_images_of_a_named_data_set_are_counted(trained: TrainingResult) -> None:
    found = evaluate(trained.folder, "digits")
    assert found.images == 360
    assert found.top1 == pytest.approx(trained.best["test_accuracy"], abs=1e-6)


def test_classes_are_matched_by_name(trained: TrainingResult) -> None:
    data = few()
    images, labels = data.test.__getitems__(range(len(data.test)))
    backwards = dataclasses.replace(
        data, class_names=data.class_names[::-1], test=InMemory(images, 9 - labels)
    )
    expected = evaluate(trained.folder, data)
    np.testing.assert_array_equal(evaluate(trained.folder, backwards).confusion, expected.confusion)
    small = labels < 3
    some = dataclasses.replace(
        data, class_names=("0", "1", "2"), test=InMemory(images[small], labels[small])
    )
    found = evaluate(trained.folder, some).confusion
    np.testing.assert_array_equal(found[:3], expected.confusion[:3])
    assert found[3:].sum() == 0
    strange = dataclasses.replace(data, class_names=("zero", "one", *data.class_names[2:]))
    with pytest.raises(UserError, match=r"digits: .* 2 of 10 are others \(zero, one\)"):
        evaluate(trained.folder, strange)


def test_gray_images_suit_a_colour_network_but_not_the_reverse(
    trained: TrainingResult, tmp_path: Path
) -> None:
    data = few(count=20)
    card = NetworkCard(
        "attention56_cifar_pool",
        data.class_names,
        Preprocessing(16, 1.0, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)),
        TINY_OPTIONS,
    )
    save_network(card.build(), card, tmp_path)
    assert evaluate(tmp_path, data).images == 20
    images, labels = data.test.__getitems__(range(20))
    colours = dataclasses.replace(
        data, preprocessing=card.preprocessing, test=InMemory(images.expand(-1, 3, -1, -1), labels)
    )
    with pytest.raises(UserError, match=r"expected images of 1 channel, .* got 3"):
        evaluate(trained.folder, colours)


def test_a_network_of_nan_is_refused(tmp_path: Path) -> None:
    card = NetworkCard(
        "attention56_cifar_pool",
        tuple("0123456789"),
        Preprocessing(16, 1.0, (0.5,), (0.3,)),
        TINY_OPTIONS,
    )
    network = card.build()
    torch.nn.init.constant_(network.get_classifier().bias, float("nan"))  # type: ignore[operator]
    save_network(network, card, tmp_path)
    with pytest.raises(UserError, match=r"expected finite numbers, head\.fc\.bias has NaN"):
        evaluate(tmp_path, few(count=10))
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    with pytest.raises(UserError, match=r"expected finite numbers, head\.fc\.bias has NaN"):
        predict(tmp_path, image)


def test_an_error_of_a_reading_process_is_one_line(trained: TrainingResult) -> None:
    class Damaged:
        def __len__(self) -> int:
            return 4

        def __getitems__(self, indices: object) -> None:
            raise UserError("a.png: expected a readable image")

    data = dataclasses.replace(few(), test=Damaged(), workers=1)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        evaluate(trained.folder, data)
    assert str(caught.value) == "a.png: expected a readable image"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tta": "rotate"}, "tta: expected one of none, flip, got 'rotate'"),
        ({"image_size": 0}, "image_size: expected 1 to 8192 pixels, got 0"),
        ({"image_size": 8193}, "image_size: expected 1 to 8192 pixels, got 8193"),
        ({"image_size": 2}, "image size 2: expected at least 3"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"device": "abacus"}, "device: expected"),
    ],
)
def test_bad_arguments(
    trained: TrainingResult, arguments: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        evaluate(trained.folder, "digits", **arguments)  # type: ignore[arg-type]


def test_scores_of_classes() -> None:
    evaluation = Evaluation(
        checkpoint="c",
        model="m",
        data="d",
        image_size=8,
        tta="none",
        class_names=("cat", "dog", "eel"),
        confusion=np.array([[6, 3, 1], [0, 10, 0], [0, 0, 0]]),
        top1=0.8,
        top5=1.0,
        seconds=2.0,
    )
    cat, dog, eel = evaluation.classes()
    assert (cat.images, cat.accuracy, cat.precision, cat.confused_with) == (10, 0.6, 1.0, "dog")
    assert (dog.images, dog.accuracy, dog.confused_with) == (10, 1.0, None)
    assert dog.precision == pytest.approx(10 / 13)
    assert (eel.images, eel.accuracy, eel.precision, eel.confused_with) == (0, None, 0.0, None)
    assert evaluation.confusions() == [("cat", "dog", 3), ("cat", "eel", 1)]
    content = json.loads(json.dumps(evaluation.to_json()))
    assert content["images_per_second"] == 10.0
    assert content["classes"][2]["accuracy"] is None


def test_the_picture_is_never_replaced_unasked(trained: TrainingResult, tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"confusion.png: expected a new file, it exists"):
        evaluate(trained.folder, few(count=10), confusion=path)
    assert path.read_bytes() == b"mine"
    for name in ("confusion", "confusion.docx"):  # named before the work, not after
        with pytest.raises(UserError, match=f"{name}: expected a name that ends in one of"):
            evaluate("no checkpoint", few(count=10), confusion=tmp_path / name)
    evaluate(trained.folder, few(count=10), confusion=path, overwrite=True)
    with Image.open(path) as picture:
        assert picture.width > 700
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [2, 40, 300])
def test_confusion_matrices_of_any_size_are_drawn(tmp_path: Path, count: int) -> None:
    path = tmp_path / "confusion.png"
    matrix = np.eye(count, dtype=int) * 9
    matrix[0, 1] = 4
    names = [f"a rather long name of class {number}, $x^$" for number in range(count)]
    plot_confusion(path, matrix, names, [(names[0], names[1], 4)], title="test")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape[1] < 1500
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    red = (pixels[..., 0] - pixels[..., 2]) > 60
    assert blue.sum() > 500  # the diagonal
    assert red.sum() > 500  # the bar of the confusion
