"""A training step moves what it did: the bytes of whole networks, plain and ours."""

import pytest

from bench.networks.traffic import NETWORKS

from . import measure
from .test_cost import check


@pytest.mark.parametrize("network", NETWORKS)
def test_traffic_of_the_networks(network: str) -> None:
    then = measure.read_baseline("networks")
    check({network: measure.steps(network)}, {network: then[network]})
