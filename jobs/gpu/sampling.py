"""The order of rows in training: batches of like lengths, in an order that has nothing to do with length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

#: Batches that are sorted by length together. Larger ones pad less and mix less.
POOL = 50

#: How many groups of kin are looked at for one that fits into the rest of a batch.
AHEAD = 8


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


class KinBatches(LengthBatches):
    """As `LengthBatches`, with items of the same kin in one batch as far as its size allows.

    Kin that don't fit into what is left of a batch wait for one with room; where none of the next has it, they are
    parted. So every batch is full, whatever the numbers of kin are.

    Args:
        kin: of each item, a number that its kin have, too.
        lengths: tokens that an item adds; kin are sorted by their sum.
    """

    def __init__(self, lengths: Sequence[int], kin: Sequence[int], batch: int, seed: int) -> None:
        super().__init__(lengths, batch, seed)
        self._kin = list(kin)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}/{self._epoch}")
        families: dict[int, list[int]] = {}
        for place, number in enumerate(self._kin):
            families.setdefault(number, []).append(place)
        groups = list(families.values())
        for group in groups:
            chance.shuffle(group)
        chance.shuffle(groups)
        rest = self._rest(groups)
        batches: list[list[int]] = []
        waiting: list[list[int]] = []
        for group in groups:
            waiting.append(group)
            if sum(map(len, waiting)) >= self._batch * POOL:
                waiting = self._fill(waiting, batches)
        self._fill(waiting, batches)
        chance.shuffle(batches)
        yield from (place for batch in batches for place in batch)
        yield from rest

    def _rest(self, groups: list[list[int]]) -> list[int]:
        """Takes from shuffled groups the items of the incomplete batch."""
        rest: list[int] = []
        while (missing := len(self) % self._batch - len(rest)) > 0:
            group = groups.pop()
            rest += group[:missing]
            if group[missing:]:
                groups.append(group[missing:])
        return rest

    def _fill(self, groups: list[list[int]], batches: list[list[int]]) -> list[list[int]]:
        """Full batches of like lengths; returns the groups that are left, fewer items than a batch."""
        groups = sorted(groups, key=lambda group: sum(self._lengths[place] for place in group))
        left = sum(map(len, groups))
        while left >= self._batch:
            batch: list[int] = []
            while len(batch) < self._batch:
                room = self._batch - len(batch)
                fitting = [at for at, group in enumerate(groups[:AHEAD]) if len(group) <= room]
                exact = [at for at in fitting if len(groups[at]) == room]
                if fitting:
                    batch += groups.pop((exact or fitting)[0])
                else:
                    batch += groups[0][:room]
                    groups[0] = groups[0][room:]
            batches.append(batch)
            left -= self._batch
        return groups
