"""What holds of any batches: every slice once an epoch, whoever trains, and at any step as if it were the first."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from bare_table import Line, bare_table
from hypothesis import given, settings
from hypothesis import strategies as st

from braintum.data.batches import Batch, Batches
from braintum.data.table import SliceTable
from braintum.parts import Augment

SAME = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Data(NamedTuple):
    """Slices whose label is their row in the table, some of them without a mask, and how they are trained on."""

    table: SliceTable
    rows: np.ndarray
    batch_size: int
    seed: int
    augment: Augment | None
    epoch: int
    window: int

    def batches(self, rank: int = 0, world_size: int = 1) -> list[Batch]:
        return list(self.new(rank, world_size).epoch(self.epoch))

    def new(self, rank: int = 0, world_size: int = 1) -> Batches:
        return Batches(
            self.table, self.rows, batch_size=self.batch_size, seed=self.seed, augment=self.augment,
            window=self.window, rank=rank, world_size=world_size,
        )  # fmt: skip


@st.composite
def trainings(draw: st.DrawFn) -> Data:
    masked = draw(st.lists(st.booleans(), min_size=1, max_size=40))
    table = bare_table([Line(f"{row}", row, has_mask=has_mask) for row, has_mask in enumerate(masked)], size=8)
    rows = np.array(sorted(draw(st.sets(st.integers(0, len(masked) - 1), min_size=1))))
    return Data(
        table, rows, draw(st.integers(1, 45)), draw(st.integers(0, 2**32)), draw(st.sampled_from([None, Augment()])),
        draw(st.integers(0, 1000)), draw(st.integers(1, 45)),
    )  # fmt: skip


def check_same(one: Batch, other: Batch) -> None:
    for name, value, expected in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name


@SAME
@given(trainings())
def test_an_epoch_has_every_slice_once(data: Data) -> None:
    batches = data.batches()
    assert len(batches) == data.new().num_steps
    assert sorted(torch.cat([batch.label_B for batch in batches]).tolist()) == data.rows.tolist()
    assert all(1 <= len(batch.label_B) <= data.batch_size for batch in batches)
    for batch in batches:
        has_mask = data.table.has_mask_R[batch.label_B.numpy()]
        assert batch.has_mask_B.tolist() == has_mask.tolist()
        assert (batch.num_masks, batch.num_labels) == (has_mask.sum(), len(has_mask))


@SAME
@given(trainings(), st.data())
def test_workers_share_the_batches_of_one(data: Data, more: st.DataObject) -> None:
    alone = data.batches()
    most = len(data.rows) // len(alone)
    world_size = more.draw(st.integers(1, most))
    shares = [data.batches(rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert min(len(part.label_B) for part in parts) >= 1
        for name in ("label_B", "has_mask_B", "mask_BKHW"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
        # a grid of another batch size may be computed in another order
        torch.testing.assert_close(torch.cat([part.image_BCHW for part in parts]), whole.image_BCHW)
        for part in parts:
            assert (part.num_masks, part.num_labels) == (whole.num_masks, whole.num_labels)
            assert torch.equal(part.global_label_B, whole.global_label_B)


@SAME
@given(trainings(), st.data())
def test_a_step_does_not_depend_on_those_before(data: Data, more: st.DataObject) -> None:
    """A run that goes on in a process of its own sees what it would have seen, whatever was taken there before."""
    whole = data.batches()
    step = more.draw(st.integers(0, len(whole) - 1))
    other = data.new()
    for epoch, taken in more.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3)):
        list(islice(other.epoch(epoch), taken))
    for batch, expected in zip(islice(other.epoch(data.epoch), step, None), whole[step:], strict=True):
        check_same(batch, expected)
