from __future__ import annotations

import numpy as np
import pytest
import torch
from example_rows import SIZE, make_row

from braintum.data.batches import Batch, Batches, ordered_batches
from braintum.data.schema import DataError
from braintum.parts import Augment


def slices_of(table, batches) -> list[int]:
    """The table rows that batches hold, recognised by their pixels (no augmentation)."""
    known = {batch.image_BCHW[0].numpy().tobytes(): row for row in range(len(table)) for batch in one(table, row)}
    return [known[image.numpy().tobytes()] for batch in batches for image in batch.image_BCHW]


def one(table, row: int):
    return ordered_batches(table, np.array([row]), 1)


@pytest.fixture
def table(make_table):
    def row(i: int):
        mask = {"mask_HW": None} if i % 4 == 3 else {}
        return make_row(f"r{i}", [None, "a", "b"][i % 3] if i % 4 != 3 else "a", **mask)

    return make_table([row(i) for i in range(37)])


@pytest.mark.parametrize("batch_size", [1, 5, 8, 36, 37, 100])
def test_an_epoch_holds_every_row_once(table, batch_size: int) -> None:
    rows = np.arange(1, 37)
    batches = Batches(table, rows, batch_size=batch_size, seed=3, augment=None)
    epoch = list(batches.epoch(0))
    assert len(epoch) == batches.num_steps == -(-36 // batch_size)
    order = slices_of(table, epoch)
    assert sorted(order) == rows.tolist()
    sizes = [len(batch.label_B) for batch in epoch]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1  # no tiny last one
    if batch_size < 36:
        assert order != slices_of(table, batches.epoch(1))
        other = Batches(table, rows, batch_size=batch_size, seed=4, augment=None)
        assert order != slices_of(table, other.epoch(0))


def test_a_batch_holds_what_the_table_says(table) -> None:
    for batch in Batches(table, np.arange(37), batch_size=8, seed=0, augment=None).epoch(2):
        for i, row in enumerate(slices_of(table, [batch])):
            image = table.image_RCHW[row].astype(np.float32)
            expected = (image - image.min()) / (image.max() - image.min())
            np.testing.assert_allclose(batch.image_BCHW[i], expected, atol=1e-6)
            np.testing.assert_array_equal(batch.mask_BKHW[i, 0], table.mask_RHW[row])
            assert (batch.label_B[i], batch.has_mask_B[i]) == (table.label_R[row], table.has_mask_R[row])
        assert batch.num_masks == batch.has_mask_B.sum()
        assert batch.num_labels == (batch.label_B >= 0).sum()
        assert torch.equal(batch.global_label_B, batch.label_B)


@pytest.mark.parametrize("augment", [None, Augment()])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (2, 8), (3, 7), (7, 8)])
def test_workers_share_a_global_batch(table, augment, world_size: int, batch_size: int) -> None:
    def epoch(rank: int, world_size: int) -> list[Batch]:
        options = {"batch_size": batch_size, "seed": 1, "augment": augment}
        return list(Batches(table, np.arange(37), rank=rank, world_size=world_size, **options).epoch(4))

    workers = [epoch(rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(epoch(0, 1)):
        shares = [worker[step] for worker in workers]
        assert min(len(share.label_B) for share in shares) >= 1
        assert torch.equal(torch.cat([share.label_B for share in shares]), whole.label_B)
        torch.testing.assert_close(torch.cat([share.image_BCHW for share in shares]), whole.image_BCHW)
        assert torch.equal(torch.cat([share.mask_BKHW for share in shares]), whole.mask_BKHW)
        for share in shares:
            assert (share.num_masks, share.num_labels) == (whole.num_masks, whole.num_labels)
            assert torch.equal(share.global_label_B, whole.label_B)


def test_a_slice_is_augmented_alike_in_any_batch(table) -> None:
    def changed(rows, batch_size: int) -> dict[int, bytes]:
        plain = slices_of(table, Batches(table, rows, batch_size=batch_size, seed=0, augment=None).epoch(5))
        batches = Batches(table, rows, batch_size=batch_size, seed=0, augment=Augment())
        images = [image.numpy().tobytes() for batch in batches.epoch(5) for image in batch.image_BCHW]
        return dict(zip(plain, images, strict=True))

    all_rows, some = changed(np.arange(37), 16), changed(np.arange(10, 20), 1)
    assert some == {row: all_rows[row] for row in some}


def test_batches_for_evaluation_keep_the_order(table) -> None:
    rows = np.array([5, 3, 30, 3, 0])
    batches = list(ordered_batches(table, rows, 2))
    assert [len(batch.label_B) for batch in batches] == [2, 2, 1]
    assert slices_of(table, batches) == rows.tolist()


def test_rows_of_an_odd_number_of_bytes(make_table) -> None:
    table = make_table([make_row(f"r{i}") for i in range(3)], image_size=17)
    batch = next(ordered_batches(table, np.array([2, 0]), 2))
    np.testing.assert_array_equal(batch.mask_BKHW[:, 0], table.mask_RHW[[2, 0]])


def test_two_masks_are_two_channels(make_table) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:4], mask[4:9] = 1, 2
    table = make_table([make_row("x", mask_HW=mask), make_row("y")])
    batch = next(ordered_batches(table, np.arange(2), 2))
    assert table.masks == ("tumour", "oedema")
    np.testing.assert_array_equal(batch.mask_BKHW[0], np.stack([mask == 1, mask == 2]))


def test_a_constant_slice_is_zero(make_table) -> None:
    table = make_table([make_row("x", image_CHW=np.full((1, SIZE, SIZE), 9, np.uint8))])
    assert not next(ordered_batches(table, np.arange(1), 1)).image_BCHW.any()


def test_impossible_batches_are_refused(table) -> None:
    with pytest.raises(DataError, match="leaves some of 3 workers"):
        Batches(table, np.arange(10), batch_size=2, seed=0, augment=None, world_size=3)
    with pytest.raises(DataError, match="no slices to train on"):
        Batches(table, np.arange(0), batch_size=2, seed=0, augment=None)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_batches(table) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for augment in (None, Augment()):
        here, there = (
            Batches(table, np.arange(37), batch_size=8, seed=0, augment=augment, device=device)
            for device in ("cpu", "cuda")
        )
        for one, other in zip(here.epoch(0), there.epoch(0), strict=True):
            assert other.image_BCHW.is_cuda
            torch.testing.assert_close(other.image_BCHW.cpu(), one.image_BCHW, atol=1e-4, rtol=1e-4)
            assert (other.mask_BKHW.cpu() != one.mask_BKHW).float().mean() < 1e-3  # nearest, at the border of two
