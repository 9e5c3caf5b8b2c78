"""The tables in the documents are made from the committed measurements."""

from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from bench.networks.tables import scale
from bench.plots import draw, ratios, scaling, traffic
from bench.tables import DOCUMENTS, filled


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
    machine = {"chip": "chip", "threads": 2, "torch": "2"}
    results = [result, {**result, "op": "upsample"}]
    content = {"kind": "kernels", "machine": machine, "results": results}
    bars = [patch for patch in ratios(content).axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [0.5, 0.5, 0.25, 0.25]
    _, labels = traffic(content).axes[0].get_legend_handles_labels()
    assert set(labels) == {"attention_gate", "upsample", "copy, 2 GB/s"}
    paths = draw(content, "kernels", tmp_path)
    assert [path.name for path in paths] == ["kernels-ratios.png", "kernels-traffic.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


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

    machine = {"chip": "chip", "threads": 2, "torch": "2", "instructions": "AVX2"}
    machine |= {"date": "2026-11-21 12:00 UTC", "commit": "abc"}
    content = {"machine": machine, "results": [point(1), point(4)]}
    assert scale(content).endswith("| batch | attention56 | 4×3×224×224 | 4.00 | 8 | 8 | 1.50 |")
    assert scaling(content).axes[0].get_title() == "batch: slope 1.50"
