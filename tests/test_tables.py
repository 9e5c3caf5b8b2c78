"""The tables in the documents are made from the committed measurements."""

from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from bench.plots import draw, ratios, traffic
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
    content = {"machine": machine, "results": [result, {**result, "op": "upsample"}]}
    bars = [patch for patch in ratios(content).axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [0.5, 0.5, 0.25, 0.25]
    _, labels = traffic(content).axes[0].get_legend_handles_labels()
    assert set(labels) == {"attention_gate", "upsample", "copy, 2 GB/s"}
    paths = draw(content, "kernels", tmp_path)
    assert [path.name for path in paths] == ["kernels-ratios.png", "kernels-traffic.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
