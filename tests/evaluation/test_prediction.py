from pathlib import Path

import pytest
import torch
from PIL import Image

from ran.data import load_data
from ran.errors import UserError
from ran.evaluation.prediction import predict
from ran.serving.deploy import Deployed, deploy
from ran.training.run import TrainingResult
from ran.weights.inference import class_probabilities
from ran.weights.network_card import load_network


@pytest.fixture
def digit_files(tmp_path: Path) -> list[Path]:
    """The first test images, as 8×8 files."""
    images, _ = load_data("digits", 8).test.__getitems__(range(5))
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0].numpy()).save(paths[-1])
    return paths


def test_files_are_classified_as_in_training(
    trained: TrainingResult, digit_files: list[Path]
) -> None:
    network, card = load_network(trained.folder)
    images, _ = load_data("digits", 16).test.__getitems__(range(5))
    with torch.no_grad():
        expected = network(card.preprocessing.normalize(images)).softmax(1)
    found = predict(trained.folder, digit_files, topk=3, batch_size=2)
    assert [prediction.path for prediction in found] == digit_files
    for prediction, row in zip(found, expected, strict=True):
        values, numbers = row.topk(3)
        names, probabilities = zip(*prediction.classes, strict=True)
        assert names == tuple(card.class_names[number] for number in numbers)
        assert probabilities == pytest.approx(values.tolist(), abs=1e-5)


def test_deployed_or_not_the_classes_are_the_same(
    trained: TrainingResult, digit_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def noted(network: torch.nn.Module) -> Deployed:
        made.append(network)
        return deploy(network)

    monkeypatch.setattr("ran.evaluation.prediction.make_deployed", noted)
    ours = predict(trained.folder, digit_files)
    assert len(made) == 1
    plain = predict(trained.folder, digit_files, deploy=False)
    assert len(made) == 1
    for a, b in zip(ours, plain, strict=True):
        assert [name for name, _ in a.classes] == [name for name, _ in b.classes]
        assert [p for _, p in a.classes] == pytest.approx([p for _, p in b.classes], abs=1e-5)


def test_probabilities_add_up_to_one(trained: TrainingResult) -> None:
    network, card = load_network(trained.folder)
    images, _ = load_data("digits", 16).test.__getitems__(range(7))
    probabilities = class_probabilities(network, card.preprocessing, images)
    assert probabilities.shape == (7, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


def test_topk_beyond_the_classes_gives_them_all(
    trained: TrainingResult, digit_files: list[Path]
) -> None:
    (prediction,) = predict(trained.folder, digit_files[:1], topk=99)
    assert len(prediction.classes) == 10


def test_a_single_path_is_one_image(trained: TrainingResult, digit_files: list[Path]) -> None:
    (expected,) = predict(trained.folder, digit_files[:1])
    assert predict(trained.folder, str(digit_files[0])) == [expected]
    assert predict(trained.folder, digit_files[0]) == [expected]


def test_bad_arguments_are_named(trained: TrainingResult, digit_files: list[Path]) -> None:
    with pytest.raises(UserError, match="topk: expected a positive integer, got 0"):
        predict(trained.folder, digit_files, topk=0)
    with pytest.raises(UserError, match="device: expected"):
        predict(trained.folder, digit_files, device="gpu")
    with pytest.raises(UserError, match="at least one image"):
        predict(trained.folder, [])
