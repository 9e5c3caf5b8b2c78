"""The benchmark of whole networks: its result file, what it counts, and going on after a cut."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.graph import GraphLowering

from bench import machine
from bench.networks import speed, tables
from bench.networks.profiles import Generated, kind, profile
from bench.networks.variants import Ready, measured
from bench.results_file import Record

WAYS = ["plain contiguous", "plain", "ours", "ours norms"]  # compiling takes half a minute


def test_a_variant_that_computes_something_else_has_no_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def prepare(name: str) -> Ready:
        if name == "compiled":
            raise ValueError("compiled: result 0 is off by nan of its norm")
        return Ready(lambda: lambda: torch.ones(3), "cpu", compiles=False)

    *_, entry = measured(["plain", "compiled", "ours"], prepare, ("plain", "ours"), "cpu", 2)
    assert set(entry["samples"]) == {"plain", "ours"}
    assert entry["refused"] == {"compiled": "compiled: result 0 is off by nan of its norm"}
    assert "compiled: no speed, as it computes something else" in capsys.readouterr().err
    with pytest.raises(ValueError, match="off by nan"):
        list(measured(["plain", "compiled"], prepare, ("plain", "compiled"), "cpu", 2))


@pytest.mark.usefixtures("few_channels")
def test_a_result_has_everything_of_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_commit", lambda: "one")
    path = tmp_path / "speed.json"
    arguments = ["--network", "cbam_resnet18", "--batch", "2", "--size", "32", "--rounds", "3"]
    arguments += ["--direction", "training step", "--device", "cpu", "--result", str(path)]
    arguments += [option for way in WAYS for option in ("--variant", way)]
    speed.main([*arguments, "--dtype", "bfloat16"])
    assert "| cbam_resnet18 | 2×3×32×32 | bfloat16 | training step |" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["kind"] == "network speed"
    (entry,) = content["results"]
    assert {name: len(times) for name, times in entry["samples"].items()} == dict.fromkeys(WAYS, 3)
    assert entry["compile_seconds"] == dict.fromkeys(WAYS, 0)
    assert all(size > 1e6 for size in entry["peak_bytes"].values())
    # The fused operators are there to be fewer.
    assert 0 < entry["launches"]["ours"] < entry["launches"]["plain"]
    assert entry["launches"]["ours norms"] > entry["launches"]["ours"]
    kinds = {kind(row["name"]) for row in entry["operations"]["ours"]}
    assert {"convolution forward", "convolution backward", "attention operators"} <= kinds

    # What is there is not measured again, and the rest is.
    measured = []

    def compare(**key: Any) -> Iterator[dict[str, Any]]:
        measured.append(key["dtype"])
        yield {name: entry[name] for name in entry if name not in key}

    monkeypatch.setattr(speed, "compare", compare)
    speed.main([*arguments, "--dtype", "bfloat16", "--dtype", "float32"])
    assert measured == ["float32"]
    dtypes = [entry["dtype"] for entry in json.loads(path.read_text())["results"]]
    assert dtypes == ["bfloat16", "float32"]


def test_entries_of_another_commit_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_commit", lambda: "one")

    def add() -> Record:
        record = Record("some", tmp_path / "some.json")
        record.add(lambda batch: iter([{"size": [batch, 2]}]), batch=1)
        return record

    assert add().content == add().content
    content: dict[str, Any] = json.loads((tmp_path / "some.json").read_text())
    content["results"][0]["size"] = [9, 9]
    (tmp_path / "some.json").write_text(json.dumps(content))
    assert add().content["results"] == [{"batch": 1, "size": [9, 9]}]
    content["machine"]["commit"] = "another"
    (tmp_path / "some.json").write_text(json.dumps(content))
    assert add().content["results"] == [{"batch": 1, "size": [1, 2]}]

    # A tree with changes may be another tree than the last time.
    monkeypatch.setattr(machine, "_commit", lambda: "one-dirty")
    add()
    content = json.loads((tmp_path / "some.json").read_text())
    content["results"][0]["size"] = [9, 9]
    (tmp_path / "some.json").write_text(json.dumps(content))
    assert add().content["results"] == [{"batch": 1, "size": [1, 2]}]


def test_what_was_there_before_a_cut_is_kept_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_commit", lambda: "one")
    path = tmp_path / "some.json"

    def cut(batch: int) -> Iterator[dict[str, Any]]:
        yield {"samples": {"plain": [2.0], "ours": [1.0]}}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Record("some", path).add(cut, batch=1)
    (entry,) = json.loads(path.read_text())["results"]
    assert entry.pop("unfinished")
    assert entry == {"batch": 1, "samples": {"plain": [2.0], "ours": [1.0]}}

    record = Record("some", path)
    whole = {"samples": {"plain": [2.0], "ours": [1.0], "compiled": [1.5]}}
    record.add(lambda batch: iter([{}, whole]), batch=1)
    assert json.loads(path.read_text())["results"] == [{"batch": 1, **whole}]
    record.add(cut, batch=1)  # there is one, so this is not called


def test_without_git_a_result_says_so_and_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for size in (1, 2):
        record = Record("some", tmp_path / "some.json")
        record.add(lambda batch, size=size: iter([{"size": size}]), batch=1)
        assert record.content["machine"]["commit"] == "unknown"
        assert record.content["results"] == [{"batch": 1, "size": size}]


@pytest.mark.usefixtures("few_channels")
def test_every_variant_is_measured_as_it_comes() -> None:
    arguments = ("cbam_resnet18", "inference", 1, (32, 32), "float32", "cpu", 1)
    entries = list(speed.compare(*arguments, ["ours", "plain contiguous", "plain"]))
    assert [list(entry["samples"]) for entry in entries] == [
        ["plain", *names] for names in (["ours"], ["ours", "plain contiguous"])
    ]
    assert all(set(entry["peak_bytes"]) == set(entry["samples"]) for entry in entries)


def test_a_table_of_an_entry_that_was_cut_leaves_room() -> None:
    operations = [{"name": "aten::conv2d", "calls": 1, "ms": 1.0}]
    whole = {"plain": [2.0], "ours": [1.0], "plain compiled": [4.0]}
    key = {"network": "n", "batch": 1, "size": [8, 8], "dtype": "bfloat16", "direction": "both"}
    results = [
        {
            **key,
            "samples": samples,
            "peak_bytes": dict.fromkeys(samples, 1e6),
            "operations": dict.fromkeys(samples, operations),
        }
        for samples in ({"plain": [2.0], "ours": [1.0]}, whole)
    ]
    content = {"machine": machine.describe(), "results": results}
    cut, all_there = speed.speed(content).splitlines()[-2:]
    assert cut.split(" | ")[5:7] == ["0.50", ""]
    assert all_there.split(" | ")[5:7] == ["0.50", "0.25"]
    assert "| 1.0 (100%) | 1.0 (100%) | 0.0 (0%) |" in tables.profiles(content)


def test_launches_are_leaves_and_the_optimizer_is_a_kind() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], lr=0.1, foreach=False)

    def run() -> None:
        torch.ones(2).relu()  # aten::ones calls aten::empty and aten::fill_; aten::relu nothing
        optimizer.step()  # an addition

    found = profile(run, "cpu", generated=5)
    rows = {row["name"]: row for row in found["operations"]}
    assert kind("optimizer: aten::add_") == "optimizer"
    assert rows["optimizer: aten::add_"]["calls"] == 1
    assert rows["aten::ones"]["calls"] == 1
    leaves = [name for name in rows if name.split("::")[-1] in ("empty", "fill_", "clamp_min")]
    assert found["launches"] == 5 + len(leaves) + 1, rows


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::mkldnn_convolution", "convolution forward"),
        ("aten::convolution_backward", "convolution backward"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::threshold_backward", "element-wise, reductions"),
        ("aten::max", "element-wise, reductions"),
        ("aten::max_pool2d_with_indices", "pooling, upsampling"),
        ("ran::upsample_backward", "attention operators"),
        ("_BlockBackward", "attention operators"),
        ("aten::addmm", "linear"),
        ("## Call CompiledFxGraph ## 1", "compiled graph"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("aten::empty", "other"),
    ],
)
def test_operations_have_kinds(name: str, expected: str) -> None:
    assert kind(name) == expected


def test_calls_of_generated_kernels_are_counted() -> None:
    generated = Generated()
    with generated.watching():
        count: Any = GraphLowering.save_output_code
        count(
            "cpp_fused_add_0 = compile()\ndef call(self):\n"
            "        cpp_fused_add_0(buf0)\n        cpp_fused_add_0(buf1)\n"
        )
    assert generated.calls == 2
