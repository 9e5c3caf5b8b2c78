"""What ``ran models`` prints, against the networks themselves."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ran
from ran.cli import app
from ran.models.catalogue import Row, catalogue
from ran.models.registry import SPECS

ROWS = {row.name: row for row in catalogue()}
#: Counted here. The others have more modules, and lie on a line with these.
COUNTED = [
    row
    for row in ROWS.values()
    if row.name not in SPECS or sum(SPECS[row.name].modules) <= 7 or row.name == "attention452"
]


def test_every_network_has_a_row() -> None:
    assert list(ROWS) == ran.list_models()


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row.name)
def test_rows_are_what_counting_finds(row: Row) -> None:
    with torch.device("meta"):
        model: Any = ran.create_model(row.name)
    assert model.pretrained_cfg["input_size"] == row.input_size
    assert ran.count_parameters(model) == row.parameters
    assert ran.count_multiply_adds(model, row.input_size) == row.multiply_adds


@pytest.mark.parametrize(
    ("depths", "name"),
    [
        (("92", "128", "164", "200", "236"), "attention{}"),
        (("56", "92", "128", "164", "236", "452"), "attention{}_cifar"),
    ],
)
@pytest.mark.parametrize("count", ["parameters", "multiply_adds"])
def test_deeper_networks_add_the_same_modules(
    depths: tuple[str, ...], name: str, count: str
) -> None:
    names = [name.format(depth) for depth in depths]
    per_module = set()
    for one, other in pairwise(names):
        # One more module in each of the three stages.
        steps = (sum(SPECS[other].modules) - sum(SPECS[one].modules)) / 3
        per_module.add((getattr(ROWS[other], count) - getattr(ROWS[one], count)) / steps)
    assert len(per_module) == 1


def test_command_prints_all_or_some() -> None:
    everything = CliRunner().invoke(app, ["models"], env={"COLUMNS": "160"})
    assert everything.exit_code == 0
    assert all(name in everything.stdout for name in ROWS)
    narrow = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"})
    assert all(name in narrow.stdout for name in ROWS)
    some = CliRunner().invoke(app, ["models", "cbam_resnet5*"], env={"COLUMNS": "160"})
    assert "cbam_resnet50" in some.stdout
    assert "28,089,624" in some.stdout
    assert "4.096 G" in some.stdout
    assert "22.66 / 6.31" in some.stdout
    assert "cbam_resnet18" not in some.stdout
    none = CliRunner().invoke(app, ["models", "vgg*"])
    assert none.exit_code == 2
    assert "pattern: expected" in none.output
