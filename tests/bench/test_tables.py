"""The tables in the documents are made from the committed measurements."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle

from bench import training
from bench.networks.speed import VARIANTS
from bench.networks.tables import scale
from bench.plots import COLORS, bars, draw, main, ratios, scaling, traffic
from bench.tables import DOCUMENTS, RESULTS, TABLES, filled

MACHINE = {
    "chip": "chip",
    "threads": 2,
    "torch": "2",
    "instructions": "AVX2",
    "date": "2026-11-21 12:00 UTC",
    "commit": "abc",
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert text == filled(text), "`make tables` rewrites them"


def test_a_table_without_measurements_is_named() -> None:
    with pytest.raises(ValueError, match="table nowhere: expected a file"):
        filled("<!-- table: nowhere -->\n<!-- end -->")


def test_pictures_show_every_operator(tmp_path: Path) -> None:
    result = {
        "op": "attention_gate",
        "layout": "contiguous",
        "direction": "forward",
        "bytes": 1e6,
        "floor_traffic": 3,
        "samples": {"ours": [1e-3], "eager": [2e-3], "compile": [4e-3], "copy": [1e-3]},
        "peak_bytes": {"ours": 1, "eager": 1},
    }
    results = [result, {**result, "op": "upsample"}]
    content = {"kind": "kernels", "machine": MACHINE, "results": results}
    bars = [patch for patch in ratios(content).axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [0.5, 0.5, 0.25, 0.25]
    _, labels = traffic(content).axes[0].get_legend_handles_labels()
    assert set(labels) == {"attention_gate", "upsample", "copy, 2 GB/s"}
    paths = draw(content, "kernels", tmp_path)
    assert [path.name for path in paths] == ["kernels-ratios.png", "kernels-traffic.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_what_was_wrong_has_no_ratio(tmp_path: Path) -> None:
    shape = {"batch": 1, "stage": [2, 3, 3], "layout": "contiguous", "dtype": "float32"}
    samples = {"ours": [1e-3], "eager": [2e-3], "copy": [1e-3]}
    result = {
        "op": "CBAM",
        "direction": "forward",
        "bytes": 1e6,
        "floor_traffic": 2,
        **shape,
        "samples": samples,
        "peak_bytes": {"ours": 1, "eager": 1},
    }
    content = {"kind": "kernels", "machine": MACHINE, "results": [result]}
    assert "| 0.50–0.50 | wrong | 1.00–1.00 |" in TABLES["kernels"](content)
    assert "| 0.50 | wrong | 1.00 |" in TABLES["kernels rows"](content)
    right = {**result, "samples": {**samples, "compile": [4e-3]}}
    content["results"] = [result, right]
    assert "| 0.50–0.50 | 0.25–0.25 | 1.00–1.00 |" in TABLES["kernels"](content)
    assert draw(content, "kernels", tmp_path)


def test_the_pictures_of_every_file_of_results_can_be_drawn(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        main([str(copy)])
    curves = {path.stem for path in RESULTS.glob("training-*.json")}
    assert {path.stem.removesuffix("-curves") for path in tmp_path.glob("*-curves.png")} == curves


def test_the_slope_of_a_sweep_is_stated() -> None:
    def point(work: float) -> dict[str, object]:
        seconds = [work**1.5 / 1000]
        return {
            "sweep": "batch",
            "network": "attention56",
            "batch": int(work),
            "size": [224, 224],
            "multiply_adds": work,
            "samples": {"plain": seconds, "ours": seconds},
        }

    content = {"machine": MACHINE, "results": [point(1), point(4)]}
    assert scale(content).endswith("| batch | attention56 | 4×3×224×224 | 4.00 | 8 | 8 | 1.50 |")
    assert scaling(content).axes[0].get_title() == "batch: slope 1.50"


def _speed() -> dict[str, Any]:
    def operations(elementwise: float) -> list[dict[str, Any]]:
        return [
            {"name": "aten::convolution_backward", "calls": 1, "ms": 60.0},
            {"name": "aten::mul", "calls": 9, "ms": elementwise},
            {"name": "others", "calls": 5, "ms": 10.0},
        ]

    result = {
        "network": "attention56",
        "direction": "training step",
        "batch": 4,
        "size": [224, 224],
        "dtype": "float32",
        "samples": {"plain": [0.2, 0.1, 0.3], "ours": [0.1], "ours compiled": [0.05]},
        "compile_seconds": {"plain": 0.0, "ours": 0.0, "ours compiled": 12.3},
        "peak_bytes": {"plain": 2e8, "ours": 1e8, "ours compiled": 1e8},
        "launches": {"plain": 2000, "ours": 1000, "ours compiled": 300},
        "operations": {n: operations(ms) for n, ms in [("plain", 30.0), ("ours", 10.0)]},
    }
    result["operations"]["ours compiled"] = operations(0.0)  # type: ignore[index]
    results = [result, {**result, "direction": "inference"}]
    return {"kind": "network speed", "machine": MACHINE, "results": results}


def test_every_figure_of_every_variant_has_its_row() -> None:
    rows = TABLES["network speed rows"](_speed()).splitlines()
    named = "| attention56 | 4×3×224×224 | float32 | training step |"
    assert f"{named} plain | 200 | 20.0 |  | 200 | 2,000 |" in rows
    assert f"{named} ours compiled | 50 | 80.0 | 12 | 100 | 300 |" in rows
    assert len(rows) == 4 + 2 * 3


def test_a_profile_is_by_kind_before_and_after() -> None:
    rows = TABLES["network speed profile"](_speed()).splitlines()
    named = "| attention56 | 4×3×224×224 | float32 |"
    assert f"{named} convolution backward | 60.0 (60%) | 60.0 (75%) | 60.0 (86%) |" in rows
    assert f"{named} element-wise, reductions | 30.0 (30%) | 10.0 (12%) | 0.0 (0%) |" in rows
    assert rows[-1] == f"{named} **all** | **100** | **80** | **70** |"
    assert len(rows) == 4 + 4  # of the training step alone


def test_bars_show_every_variant_against_plain(tmp_path: Path) -> None:
    drawn = [patch for patch in bars(_speed()).axes[0].patches if isinstance(patch, Rectangle)]
    assert [round(bar.get_width(), 6) for bar in drawn] == [0.5, 0.5, 0.25, 0.25]
    assert [path.name for path in draw(_speed(), "speed", tmp_path)] == ["speed-bars.png"]


def test_bars_have_a_colour_for_every_variant_that_is_measured() -> None:
    assert set(COLORS) == set(VARIANTS) - {"plain"}


def test_an_ablation_has_a_line_for_a_variant() -> None:
    found = {"mean": 0.98, "deviation": 0.012, "test_accuracy_by_seed": [0.97, 0.99]}
    content = {"epochs": 20, "machine": MACHINE, "variants": {"mixed ARL": found}}
    assert TABLES["ablation"](content).endswith("| mixed ARL | 98.00% ± 1.20% | 97.00%, 99.00% |")


def test_a_training_becomes_a_result_without_local_paths(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    settings: dict[str, Any] = {"model": "attention56", "data": f"folder:{tmp_path}"}
    settings["output"] = str(folder)
    settings |= {"lr": 0.1, "clip_norm": None, "threads": 1}
    run = {"format": "ran-run", "version": 1, "settings": settings, "results": {"parameters": 1234}}
    run["versions"] = {"python": "3.11", "torch": "2.11", "lightning": "2"}
    (folder / "run.json").write_text(json.dumps(run))
    row = {"epoch": 1, "train_loss": 2, "test_loss": 1, "test_accuracy": 0.5}
    row |= {"images_per_second": 100, "seconds": 1800}
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        for epoch, accuracy in enumerate((0.5, 0.75, 0.7), 1):
            writer.writerow({**row, "epoch": epoch, "test_accuracy": accuracy})
    result = tmp_path / "training.json"
    training.main([str(folder), "--name", "short", "--data-name", "mine", "--result", str(result)])
    assert str(tmp_path) not in result.read_text()
    content = json.loads(result.read_text())
    assert content["settings"] == {"model": "attention56", "lr": 0.1, "threads": 1}
    assert content["machine"]["torch"] == "2.11"
    line = "| short | attention56 | mine | 1,234 | 3 | 70.00% | 75.00% (2) | 100 | 0.5 |"
    assert TABLES[content["kind"]](content).endswith(line)
    assert [path.name for path in draw(content, "t", tmp_path)] == ["t-curves.png"]
