"""The verdict between two speakers of the chat: win rate with its interval, position bias, lengths.

A tie and "both bad" count half for each side; how many there were is told beside it. The interval is a paired
bootstrap (Efron and Tibshirani 1993, chapter 13): conversations are drawn again, because the votes of one
conversation are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.votes import Duel
from workbench.agreement_stats import TAILS, Resampling

Speaker = tuple[str, int | None]

RESAMPLES = 2000
LEAST = 10  # conversations below which a bootstrap is narrower than it may be


@dataclass(frozen=True)
class VerdictBetween:
    """How `first` does against `second`.

    Attributes:
        rate: share of wins of `first`, ties as halves.
        low, high: its 95 % interval; None with fewer than `LEAST` conversations.
        left_wins, decided: of the votes that prefer one side, how many prefer the left one.
        lengths: mean characters of the answers of first and second.
    """

    first: Speaker
    second: Speaker
    votes: int
    conversations: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    rate: float
    low: float | None
    high: float | None
    left_wins: int
    lengths: tuple[float, float]

    @property
    def decided(self) -> int:
        return self.wins + self.losses


def verdicts(duels: Sequence[Duel], seed: int = 0) -> list[VerdictBetween]:
    """One verdict for each two speakers that met, those with most votes first.

    The speaker with an adapter, of two the newer one, is `first`: its win rate is the question.
    """
    groups: dict[tuple[Speaker, Speaker], list[Duel]] = {}
    for duel in duels:
        second, first = sorted((duel.left, duel.right), key=_age)
        groups.setdefault((first, second), []).append(duel)
    found = [_verdict(first, second, group, seed) for (first, second), group in groups.items()]
    return sorted(found, key=lambda verdict: -verdict.votes)


def _age(speaker: Speaker) -> tuple[int, str]:
    return (speaker[1] or 0, speaker[0])


def _verdict(first: Speaker, second: Speaker, duels: Sequence[Duel], seed: int) -> VerdictBetween:
    points, conversations, lengths = [], [], []
    wins = losses = left_wins = 0
    for duel in duels:
        side = "left" if duel.left == first else "right"
        won = duel.verdict == side
        lost = duel.verdict in ("left", "right") and not won
        wins, losses, left_wins = wins + won, losses + lost, left_wins + (duel.verdict == "left")
        points.append(1.0 if won else 0.0 if lost else 0.5)
        conversations.append(duel.conversation_id)
        pair = (duel.left_length, duel.right_length)
        lengths.append(pair if side == "left" else pair[::-1])
    low, high = interval(points, conversations, seed)
    means = np.mean(np.array(lengths, dtype=float), axis=0)
    return VerdictBetween(
        first=first,
        second=second,
        votes=len(duels),
        conversations=len(set(conversations)),
        wins=wins,
        losses=losses,
        ties=sum(duel.verdict == "tie" for duel in duels),
        both_bad=sum(duel.verdict == "both bad" for duel in duels),
        rate=float(np.mean(points)),
        low=low,
        high=high,
        left_wins=left_wins,
        lengths=(float(means[0]), float(means[1])),
    )


def interval(
    points: Sequence[float], groups: Sequence[int], seed: int = 0, times: int = RESAMPLES
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the mean of `points`, groups drawn as a whole; None for fewer than `LEAST`.

    Where all agree, every draw is the same: then it is Wilson's interval (1927) with a group as one trial.
    """
    draws = Resampling(np.asarray(groups, dtype=int), times, seed)
    if draws.number < LEAST:
        return None, None
    if len(set(points)) == 1 and points[0] in (0.0, 1.0):
        from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow to import

        wilson = binomtest(int(points[0]) * draws.number, draws.number).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)
    by_group = [np.bincount(draws.of, weights=np.asarray(points, dtype=float)), np.bincount(draws.of)]
    sums, sizes = draws.totals(np.stack(by_group, axis=1)).T
    low, high = np.percentile(sums / sizes, TAILS)
    return float(low), float(high)
