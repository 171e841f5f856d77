"""SteerLM's rows of one sample in one batch: who is kin, in what order they come, and how they are collated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.gpu.collate import PreparedCollator, kindred
from jobs.gpu.prepared import Entry, Prepared, Shelf
from jobs.gpu.sampling import KinBatches
from jobs.gpu.sft import by_kin

IMAGE = 9


def entry(prompt: list[int], answer: list[int], images: tuple[str, ...] = ()) -> Entry:
    return Entry(prompt, (answer,), {}, images)


def test_kin_are_of_one_sample_and_begin_alike_up_to_their_last_image() -> None:
    rows = [{"sample_id": number} for number in (1, 1, 2, 1, 1, 3, 3, 1)]
    entries = [
        entry([5, IMAGE, IMAGE, 6, 1], [7, 8], ("a",)),
        entry([5, IMAGE, IMAGE, 6, 2], [8], ("a",)),
        entry([5, IMAGE, IMAGE, 6, 1], [7, 8], ("a",)),  # another sample with the same image
        entry([4, IMAGE, IMAGE, 6, 1], [7, 8], ("a",)),  # other words before the image
        entry([5, IMAGE, IMAGE, 6, 1], [7, 8], ("b",)),  # another image
        entry([5, 6, 1], [7]),
        entry([4, 6, 2], [8]),  # text alone: whatever they share
        Entry([5, IMAGE, IMAGE, 6, 1], ([7], [8]), {}, ("a",)),  # a pair
    ]
    assert kindred(rows, entries, IMAGE) == [0, 0, 1, 2, 3, 4, 4, 5]


def collator(tmp_path: Path, kin: list[int]) -> PreparedCollator:
    shelf = Shelf(tmp_path, torch.float32)
    shelf.put(("a",), {"pixel_values": torch.full((1, 3), 1.0)})
    shelf.put(("b", "c"), {"pixel_values": torch.tensor([[2.0] * 3, [3.0] * 3])})
    entries = [
        entry([5, IMAGE, 1], [7, 8], ("a",)),
        entry([5, IMAGE, IMAGE, 1], [7], ("b", "c")),
        entry([5, IMAGE, 2, 2], [8], ("a",)),
        entry([5, 6], [8, 8, 8]),
        Entry([5, IMAGE, 1], ([7], [8, 8]), {}, ("a",)),
    ]
    return PreparedCollator(Prepared(entries, shelf), 0, row_wise=False, kin=kin)


def test_kin_bring_their_images_once(tmp_path: Path) -> None:
    collate = collator(tmp_path, [0, 1, 0, 2, 3])
    batch = collate([{"place": place} for place in (1, 0, 3, 2)])
    assert batch["groups"] == [0, 1, 2, 1]
    assert batch["pixel_values"][:, 0].tolist() == [2.0, 3.0, 1.0]
    assert batch["input_ids"].shape == (4, 5)
    assert batch["completion_mask"].sum(dim=1).tolist() == [1, 2, 3, 1]


def test_rows_without_kin_in_their_batch_stay_as_they_are(tmp_path: Path) -> None:
    examples = [{"place": place} for place in (1, 0, 3)]
    batch, plain = (collator(tmp_path, kin)(examples) for kin in ([0, 1, 0, 2, 3], []))
    assert "groups" not in batch
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    # Rows of one sample bring their images each where nobody asked for kin.
    apart = collator(tmp_path, [])([{"place": 0}, {"place": 2}])
    assert "groups" not in apart
    assert len(apart["pixel_values"]) == 2


def test_pairs_have_no_kin(tmp_path: Path) -> None:
    batch = collator(tmp_path, [0, 1, 0, 2, 0])([{"place": 4}, {"place": 4}])
    assert "groups" not in batch
    assert batch["input_ids"].shape[0] == 4


def families(sizes: list[int]) -> list[int]:
    return [number for number, size in enumerate(sizes) for _ in range(size)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_each_row_comes_once_an_epoch(sizes: list[int], batch: int, seed: int) -> None:
    kin = families(sizes)
    sampler = KinBatches([7 * number % 31 + 1 for number in kin], kin, batch, seed)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert len(sampler) == len(kin)
    assert sorted(first) == list(range(len(kin)))
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)


def batches_of(sampler: KinBatches, kin: list[int], batch: int) -> list[Counter[int]]:
    order = list(sampler)
    return [Counter(kin[place] for place in order[at : at + batch]) for at in range(0, len(order), batch)]


def test_kin_stay_together() -> None:
    kin = families([4] * 100)
    found = batches_of(KinBatches([1] * 400, kin, 8, seed=0), kin, 8)
    assert all(sorted(batch.values()) == [4, 4] for batch in found)
    # Batches smaller than a family part it into whole batches.
    found = batches_of(KinBatches([1] * 400, kin, 2, seed=0), kin, 2)
    assert all(list(batch.values()) == [2] for batch in found)


@pytest.mark.parametrize("batch", [8, 16])
def test_kin_of_unequal_numbers_are_seldom_parted(batch: int) -> None:
    sizes = [3 + number % 3 for number in range(300)]
    kin = families(sizes)
    sampler = KinBatches([1 + 37 * number % 101 for number in kin], kin, batch, seed=0)
    pieces = Counter(number for each in batches_of(sampler, kin, batch) for number in each)
    parted = sum(count > 1 for count in pieces.values())
    assert max(pieces.values()) == 2
    assert parted < 0.12 * len(sizes)


def test_batches_hold_like_lengths_in_an_order_of_their_own() -> None:
    kin = families([4] * 100)  # as many as are sorted together
    lengths = [1 + (37 * number) % 100 for number in kin]
    sampler = KinBatches(lengths, kin, 8, seed=0)
    order = list(sampler)
    spread, means = [], []
    for at in range(0, len(order), 8):
        each = [lengths[place] for place in order[at : at + 8]]
        spread.append(max(each) - min(each))
        means.append(sum(each) / 8)
    assert sum(spread) / len(spread) < 4
    assert means not in (sorted(means), sorted(means, reverse=True))
    # No drift along the epoch: the halves are alike.
    assert abs(sum(means[:25]) - sum(means[25:])) / 25 < 20
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert list(KinBatches(lengths, kin, 8, seed=1)) != order


def test_the_last_rows_of_an_epoch_are_any_rows() -> None:
    """What is left for the incomplete batch isn't always the longest."""
    kin = families([4] * 25)
    lengths = list(kin)
    last = []
    for seed in range(20):
        order = list(KinBatches(lengths, kin, 16, seed))
        last.append(sum(lengths[place] for place in order[96:]) / 4)
    assert 6 < sum(last) / len(last) < 18


def test_held_out_kin_stand_side_by_side_with_like_lengths_near() -> None:
    kin = [0, 1, 0, 2, 1, 2]
    lengths = [30, 5, 9, 12, 6, 11]
    assert by_kin([0, 1, 2, 3, 4, 5], kin, lengths) == [1, 4, 3, 5, 0, 2]
