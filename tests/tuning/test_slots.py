"""How many trials run at a time, asked of a cluster of one node with two CPUs."""

from __future__ import annotations

from typing import Any

import pytest

from braintum.settings import ConfigError
from braintum.tuning.parts import Resources
from braintum.tuning.slots import Slots

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize(
    ("resources", "count", "filled"),
    [
        ({}, 2, 2),
        ({"workers": 2}, 1, 1),
        ({"max_concurrent": 1}, 1, 1),
        ({"max_concurrent": 8}, 8, 2),
        ({"cpus_per_worker": 0.5, "max_concurrent": 3}, 3, 3),
        ({"gpus_per_worker": 1.0, "max_concurrent": 3}, 3, 0),  # a cluster that grows has no GPU while it is at rest
    ],
)
def test_auto_is_what_fits_and_a_number_is_taken_as_it_is(resources: dict[str, Any], count: int, filled: int) -> None:
    slots = Slots.of(Resources(**resources), "cpu")
    assert (slots.count, slots.filled) == (count, filled)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"workers": 3}, r"needs 3 × \(1 CPU\), and the cluster's nodes have room for less \(2 CPU in all\)"),
        ({"workers": 3, "max_concurrent": 8}, r"needs 3 × \(1 CPU\)"),
        ({"cpus_per_worker": 4.0, "max_concurrent": 8}, r"needs 1 × \(4 CPU\)"),
        (
            {"gpus_per_worker": 1.0},
            r"\(1 CPU, 1 GPU\).*\(2 CPU, 0 GPU in all\).*set resources.max_concurrent",
        ),
    ],
)
def test_a_trial_that_no_node_has_room_for_is_refused(resources: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Slots.of(Resources(**resources), "cpu")
