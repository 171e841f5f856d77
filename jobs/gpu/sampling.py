"""The order of pairs in training: batches of like lengths, in an order that has nothing to do with length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

#: Batches that are sorted by length together. Larger ones pad less and mix less.
POOL = 50


class LengthBatches(Sampler[int]):
    """Indices such that each run of `batch` of them has like lengths, and the runs come in random order.

    transformers' own grouping walks each pool from its longest pair to its shortest, and a small data set is four
    pools: a schedule of lengths, in a method that is prone to reward length.

    Args:
        lengths: tokens of each item.
        batch: items a batch; an incomplete one, of random items, comes last.
        seed: with the epoch it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """accelerate calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}/{self._epoch}")
        places = list(range(len(self._lengths)))
        chance.shuffle(places)
        whole = len(places) - len(places) % self._batch
        batches = []
        for start in range(0, whole, self._batch * POOL):
            pool = places[start : min(start + self._batch * POOL, whole)]
            pool.sort(key=lambda place: self._lengths[place])
            batches += [pool[at : at + self._batch] for at in range(0, len(pool), self._batch)]
        chance.shuffle(batches)
        yield from (place for batch in batches for place in batch)
        yield from places[whole:]
