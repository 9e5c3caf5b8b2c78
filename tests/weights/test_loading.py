"""Files of every format, what is wrong with some, and what strict loading refuses."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ran
from ran.errors import UserError
from ran_kernels.nn import CBAM
from tests.models.helpers import randomise, small

from .tiny import tiny_cbam


def save_npz(tensors: dict[str, Tensor], path: Path) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(path, allow_pickle=False, **arrays)


def nested(*keys: str, prefix: str = "") -> Callable[[dict[str, Tensor], Path], None]:
    def write(tensors: dict[str, Tensor], path: Path) -> None:
        content: dict[str, Any] = {prefix + name: value for name, value in tensors.items()}
        for key in reversed(keys):
            content = {"epoch": 7, "optimizer": {"state": {}}, key: content}
        torch.save(content, path)

    return write


def unchanged(model: nn.Module) -> Callable[[], bool]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda: all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.safetensors", save_file),
        ("a.npz", save_npz),
        ("a.pt", nested()),
        ("a.pkl", nested("state_dict")),
        ("a.pth.tar", nested("state_dict", prefix="module.")),
        ("a.PTH", nested("model", "model_state_dict", prefix="module._orig_mod.")),
    ],
)
def test_every_format_is_read(
    name: str, write: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    saved, model = randomise(small()), small()
    tensors = {key: value.contiguous() for key, value in saved.state_dict().items()}
    write(tensors, tmp_path / name)
    parameters = list(model.parameters())
    report = ran.load_checkpoint(model, tmp_path / name)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    assert report.source == "ran"
    assert set(report.loaded) == set(tensors)
    # An optimizer that was made before holds these.
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


class Code:
    """What a hostile file asks an unpickler for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def truncated(path: Path, save: Callable[[dict[str, Tensor], Path], None]) -> None:
    save(dict(small().state_dict()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def objects(path: Path) -> None:
    np.savez(path, a=np.array([Code(path.with_name("ran"))], dtype=object))


def save_twice(path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda p: truncated(p, nested()), "damaged"),
        ("a.safetensors", lambda p: truncated(p, save_file), "safetensors file .* damaged"),
        ("a.npz", lambda p: truncated(p, save_npz), "npz file .* damaged"),
        ("a.pth", lambda p: torch.save({"w": Code(p.with_name("ran"))}, p), r"run (posix|nt)\.mkd"),
        ("a.npz", objects, "also holds pickled objects"),
        ("a.npz", lambda p: p.write_bytes(pickle.dumps({"w": 1})), "pickled objects"),
        ("a.pth", lambda p: p.write_text("<html>404</html>"), "damaged"),
        ("a.pth", lambda p: p.write_bytes(b""), "damaged"),
        ("a.pth", lambda p: torch.save(torch.zeros(2), p), "tensors by name, got of type Tensor"),
        ("a.pth", lambda p: torch.save({}, p), "an empty dictionary"),
        ("a.pth", save_twice, "tensors by name, epoch is of type int"),
        ("a.pth", lambda p: torch.save({"conv1": []}, p), "empty lists"),
        ("a.pth", lambda p: torch.save({3: torch.zeros(1)}, p), "got 3 for a name"),
        ("a.pth", lambda p: torch.save({"w": torch.zeros(2) * 1j}, p), "of real numbers"),
        ("a.pth", lambda p: torch.save({"w": torch.zeros(2)}, p), "names of one of ran, .*: w"),
        ("a.pth", lambda p: None, "found none there"),
        ("a.h5", lambda p: p.write_bytes(b"x"), r"expected one of \.pt, .*got '\.h5'"),
    ],
)
def test_other_files_are_refused_in_one_line(
    name: str, write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    model = small()
    same = unchanged(model)
    with pytest.raises(UserError, match=message) as caught:
        ran.load_checkpoint(model, tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert same()
    assert not (tmp_path / "ran").exists()


def test_strict_loading_lists_the_first_differences_and_changes_nothing() -> None:
    model, tensors = small(), dict(randomise(small()).state_dict())
    same = unchanged(model)
    del tensors["stem.norm.bias"]
    tensors["stem.conv.scale"] = torch.zeros(1)
    tensors["head.fc.weight"] = torch.zeros(5, 32)
    with pytest.raises(UserError) as caught:
        ran.load_checkpoint(model, tensors)
    assert str(caught.value) == (
        "state_dict: expected the ran names and shapes of this ResidualAttentionNetwork: "
        "1 missing: stem.norm.bias; 1 unexpected: stem.conv.scale; "
        "1 of another shape: head.fc.weight expected (10, 32), got (5, 32); "
        f"strict=False loads the {len(tensors) - 2} that fit"
    )
    assert same()


def test_loading_that_is_not_strict_reports_what_does_not_fit() -> None:
    model, tensors = small(), dict(randomise(small()).state_dict())
    kept = model.state_dict()["head.fc.weight"].clone()
    del tensors["stem.norm.bias"]
    tensors["stem.conv.scale"] = torch.zeros(1)
    tensors["head.fc.weight"] = torch.zeros(5, 32)
    report = ran.load_checkpoint(model, tensors, strict=False)
    assert report.left == {
        "stem.norm.bias": "the checkpoint has no stem.norm.bias",
        "head.fc.weight": "expected shape (10, 32), got (5, 32)",
    }
    assert report.unexpected == ("stem.conv.scale",)
    assert {*report.loaded, *report.left} == set(model.state_dict())
    state = model.state_dict()
    assert torch.equal(state["head.fc.weight"], kept)
    assert torch.equal(state["stem.conv.weight"], tensors["stem.conv.weight"])
    assert "2 left" not in str(report)
    assert "1 left as they were (the checkpoint has no stem.norm.bias)" in str(report)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "encoder.", "m.", "module.", "module.model.", "net._orig_mod."],
)
@pytest.mark.parametrize("make", [small, tiny_cbam])
def test_prefixes_are_found_with_a_criterion_beside(make: Any, prefix: str) -> None:
    saved, model = randomise(make()), make()
    tensors = {prefix + name: value for name, value in saved.state_dict().items()}
    tensors |= {"criterion.weight": torch.ones(3), "model_ema.decay": torch.ones(1)}
    report = ran.load_checkpoint(model, tensors)
    torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert report.ignored == dict.fromkeys(
        ("criterion.weight", "model_ema.decay"), f"not under {prefix!r}"
    )
    assert not report.unexpected


def test_names_of_another_implementation_have_prefixes_too() -> None:
    ours = tiny_cbam()
    blocks = [name for name, module in ours.named_modules() if isinstance(module, CBAM)]
    theirs = {"fc1": "ChannelGate.mlp.1", "fc2": "ChannelGate.mlp.3"}
    theirs |= {"conv": "SpatialGate.spatial.conv", "norm": "SpatialGate.spatial.bn"}
    tensors = {"loss.centers": torch.zeros(2)}
    for name, value in ours.state_dict().items():
        for block in blocks:
            for layer, other in theirs.items():
                name = name.replace(f"{block}.{layer}.", f"{block}.{other}.")
        tensors[f"encoder.{name}"] = value
    report = ran.load_checkpoint(tiny_cbam(), tensors)
    assert (report.source, [*report.ignored]) == ("cbam", ["loss.centers"])


def test_of_several_networks_the_one_that_fills_the_model_is_taken_or_the_one_named() -> None:
    one, two, model = randomise(small()), randomise(small()), small()
    tensors = {f"model.{name}": value for name, value in one.state_dict().items()}
    tensors |= {f"teacher.model.{name}": value for name, value in two.state_dict().items()}
    tensors["backbone.stem.conv.weight"] = torch.zeros(1)
    ran.load_checkpoint(model, tensors)
    torch.testing.assert_close(model.state_dict(), one.state_dict(), rtol=0, atol=0)
    report = ran.load_checkpoint(model, tensors, prefix="teacher.model.")
    torch.testing.assert_close(model.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert len(report.ignored) == len(one.state_dict()) + 1
    said = r"prefix: expected what names begin with \(model \(\d+\), teacher .*\), got 'student\.'"
    with pytest.raises(UserError, match=said):
        ran.load_checkpoint(model, tensors, prefix="student.")
    with pytest.raises(UserError, match="names of one of"):
        ran.load_checkpoint(model, {f"a.{k}": v for k, v in one.state_dict().items()})


def test_many_names_are_grouped() -> None:
    model = small()
    tensors = {name: value for name, value in model.state_dict().items() if name[:4] != "stag"}
    missing = [name for name in model.state_dict() if name not in tensors]
    count = sum(not name.endswith(".num_batches_tracked") for name in missing)
    assert count > 100
    with pytest.raises(UserError) as caught:
        ran.load_checkpoint(model, tensors)
    message = str(caught.value)
    assert f"{count} missing: stages.0 (" in message
    assert len(message) < 300
    assert "strict=False" not in message  # hardly anything fits
    lines = str(ran.load_checkpoint(model, tensors, strict=False)).splitlines()
    start = f"{count} left as they were (the checkpoint does not have them): stages.0 ("
    assert [line for line in lines if line.startswith(start)]
    assert len(lines) < 5
    wide = {name: torch.zeros(*value.shape, 2) for name, value in tensors.items()}
    shapes = {**model.state_dict(), **wide}
    with pytest.raises(UserError, match=f"{len(wide)} of another shape: .*strict=False loads"):
        ran.load_checkpoint(model, shapes)
    report = str(ran.load_checkpoint(model, shapes, strict=False))
    assert f"{len(wide)} left as they were (of another shape): stem" in report


def test_weights_of_which_nothing_fits_are_refused() -> None:
    with pytest.raises(UserError, match="none of its tensors fits"):
        ran.load_checkpoint(small(), {"w": torch.zeros(1)}, source="ran", strict=False)


def test_dtypes_are_the_models() -> None:
    tensors = {name: v.half() for name, v in small().state_dict().items() if v.is_floating_point()}
    model = small().double()
    report = ran.load_checkpoint(model, tensors)
    assert {value.dtype for value in model.parameters()} == {torch.float64}
    assert set(report.left.values()) == {"the checkpoint does not count batches"}


def test_feature_extractors_and_compiled_networks_take_weights() -> None:
    whole = randomise(small()).eval()
    tensors = whole.state_dict()
    extractor = small(features_only=True, out_indices=(0, 1))
    report = ran.load_checkpoint(extractor, tensors, strict=False)
    assert not report.left
    assert set(report.unexpected) == tensors.keys() - {
        name.removeprefix("model.") for name in extractor.state_dict()
    }
    x = torch.randn(2, 3, 32, 32)
    expected = whole.forward_intermediates(x, [0, 1], intermediates_only=True)
    torch.testing.assert_close(extractor.eval()(x), list(expected), rtol=0, atol=0)
    assert not ran.load_checkpoint(extractor, extractor.state_dict()).unexpected

    other = small()
    compiled: Any = torch.compile(other, backend="eager")
    ran.load_checkpoint(compiled, tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())


def test_what_cannot_take_weights_is_refused() -> None:
    tensors = small().state_dict()
    with torch.device("meta"):
        empty = small()
    with pytest.raises(UserError, match="model: expected tensors with memory"):
        ran.load_checkpoint(empty, tensors)
    with pytest.raises(UserError, match="model: expected a network, got a OrderedDict"):
        ran.load_checkpoint(tensors, tensors)  # type: ignore[arg-type]


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="source: expected one of 'auto', 'ran', 'caffe'"):
        ran.load_checkpoint(small(), {}, source="keras")
