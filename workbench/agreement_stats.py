"""How far raters agree, as numbers with intervals (pure).

The values themselves come from libraries: weighted kappa and confusion from scikit-learn, Krippendorff's alpha
from `krippendorff`, Spearman's correlation from SciPy; they are imported inside functions, since together they
take a second and the web process starts without them. The bootstrap needs each of them a thousand times. All of
them are functions of one small table of counts (how often the first gave i where the second gave j), so the
resamples are drawn as tables, and the same formulas are worked on all thousand tables at once; tests hold both
to each other.

The bootstrap is by sample: the answers to one question share image, question and, often, one call of the judge,
and are not independent. Samples are drawn with replacement, each with all its scores, 1,000 times, by a fixed
seed; the interval runs from the 2.5th to the 97.5th percentile (Efron and Tibshirani 1993, chapters 8 and 13).
All statistics, Spearman's included, use all 1,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

RESAMPLES = 1000
SEED = 20402
TAILS = (2.5, 97.5)
_CELLS = 4_000_000  # numbers held at once while resampling

TOO_FEW = "Fewer than two pairs of scores."
ONE_SAMPLE = "All scores are of one sample: there is nothing to resample."
CONSTANT = "All scores are the same number: agreement beyond chance is not defined."
ONE_SIDED = "One of the two always gave the same number: there is no correlation."
UNSTEADY = "Undefined in most resamples: too few scores that differ."


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval. None is said in words: `why` is the reason for what is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Matched:
    """Pairs of scores on the same answers, one metric.

    Attributes:
        first, second: the scores, whole numbers 0 to levels − 1, one entry a pair.
        sample: the sample of each pair.
        levels: how many values a score can have.
        both_orders: each pair stands twice, once in each order: who comes first has no meaning.
    """

    first: Ints
    second: Ints
    sample: Ints
    levels: int
    both_orders: bool = False

    @property
    def n(self) -> int:
        return len(self.first) // (2 if self.both_orders else 1)


@dataclass(frozen=True)
class Units:
    """What Krippendorff's alpha reads: how many raters gave each answer each value.

    Attributes:
        counts: answers × levels.
        sample: the sample of each answer.
    """

    counts: Ints
    sample: Ints


@dataclass(frozen=True)
class Agreement:
    """How far two sides agree on one metric; n counts pairs of scores."""

    n: int
    samples: int
    exact: Estimate
    within_one: Estimate
    kappa: Estimate
    alpha: Estimate
    spearman: Estimate


STATISTICS = ("exact", "within_one", "kappa", "alpha", "spearman")


class Resampling:
    """Samples drawn with replacement, `times` times, by seed.

    The same ids of samples give the same draws, in whatever order they come: two statistics on one set of samples
    may be compared draw by draw.
    """

    def __init__(self, sample: Ints, times: int = RESAMPLES, seed: int = SEED) -> None:
        self.samples, self.of = np.unique(sample, return_inverse=True)
        self.number, self.times = len(self.samples), times
        draws = np.random.default_rng(seed)
        # How often each sample is drawn, times × samples; more than 255 times does not happen among many.
        self._weights = np.empty((times, self.number), np.uint16)
        step = max(1, _CELLS // max(1, self.number))
        for start in range(0, times, step):
            size = min(step, times - start)
            drawn = draws.integers(0, max(1, self.number), size=(size, self.number))
            drawn += np.arange(size)[:, None] * self.number
            counted = np.bincount(drawn.ravel(), minlength=size * self.number)
            self._weights[start : start + size] = counted.reshape(size, self.number)

    def totals(self, by_sample: Floats) -> Floats:
        """Resampled sums of a quantity a sample, samples × k; returns times × k."""
        return np.concatenate([weights @ by_sample for weights in self._parts(self.number)])

    def each(self, work: Callable[[Floats], Floats], width: int) -> Floats:
        """`work` on the weights of all answers, in stretches of resamples; `width` entries a resample."""
        return np.concatenate([work(weights[:, self.of]) for weights in self._parts(max(width, self.number))])

    def _parts(self, width: int) -> Any:
        step = max(1, _CELLS // max(1, width))
        for start in range(0, self.times, step):
            yield self._weights[start : start + step].astype(np.float64)


def estimate(value: float | None, resampled: Floats, samples: int, why: str = "") -> Estimate:
    """The value with the percentile interval of its resamples; those that are not defined (NaN) are left out."""
    if value is None:
        return Estimate(None, why=why)
    if samples < 2:
        return Estimate(value, why=ONE_SAMPLE)
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < len(resampled) / 2:
        return Estimate(value, why=UNSTEADY)
    low, high = np.percentile(defined, TAILS)
    return Estimate(value, float(low), float(high))


def confusion(matched: Matched) -> Ints:
    """How often the first gave i where the second gave j, levels × levels."""
    from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]

    labels = list(range(matched.levels))
    if not len(matched.first):  # scikit-learn refuses nothing
        return np.zeros((matched.levels, matched.levels), np.int64)
    return np.asarray(confusion_matrix(matched.first, matched.second, labels=labels), np.int64)


def agreement(matched: Matched, units: Units) -> Agreement:
    """All statistics of one metric, each with its interval."""
    values, resampled, samples = replicates(matched, units)
    found = {
        name: estimate(values[name][0], resampled[name], samples, values[name][1])
        if name in resampled
        else Estimate(None, why=TOO_FEW)
        for name in STATISTICS
    }
    return Agreement(n=matched.n, samples=samples, **found)


def replicates(
    matched: Matched, units: Units
) -> tuple[dict[str, tuple[float | None, str]], dict[str, Floats], int]:
    """(value and why there is none, its resamples, number of samples) by name of the statistic.

    Without two pairs of scores both mappings are empty of resamples and every value is None.
    """
    draws = Resampling(matched.sample)
    if matched.n < 2:
        return dict.fromkeys(STATISTICS, (None, TOO_FEW)), {}, draws.number
    tables = draws.totals(_joint(matched, draws))
    tables = tables.reshape(-1, matched.levels, matched.levels)
    # The answers of the pairs are those of the units: the same samples, so the same draws.
    coincidences = draws.totals(_coincidences(units, draws)).reshape(-1, matched.levels, matched.levels)
    difference = np.abs(matched.first - matched.second)
    values = {
        "exact": (float(np.mean(difference == 0)), ""),
        "within_one": (float(np.mean(difference <= 1)), ""),
        "kappa": _kappa(matched),
        "alpha": _alpha(units),
        "spearman": spearman_value(matched.first, matched.second),
    }
    resampled = {
        "exact": band(tables, 0),
        "within_one": band(tables, 1),
        "kappa": kappa_of(tables),
        "alpha": alpha_of(coincidences),
        "spearman": spearman_of(tables),
    }
    return values, resampled, draws.number


# --- by libraries, on the scores ---


def _kappa(matched: Matched) -> tuple[float | None, str]:
    from sklearn.metrics import cohen_kappa_score

    if np.all(matched.first == matched.first[0]) and np.all(matched.second == matched.first[0]):
        return None, CONSTANT
    labels = list(range(matched.levels))
    return float(cohen_kappa_score(matched.first, matched.second, labels=labels, weights="quadratic")), ""


def _alpha(units: Units) -> tuple[float | None, str]:
    import krippendorff

    if np.count_nonzero(units.counts.sum(axis=0)) < 2:
        return None, CONSTANT
    return float(krippendorff.alpha(value_counts=units.counts, level_of_measurement="ordinal")), ""


def spearman_value(first: NDArray[Any], second: NDArray[Any]) -> tuple[float | None, str]:
    """Spearman's correlation, or None and the reason."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    if len(first) < 2:
        return None, TOO_FEW
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, ONE_SIDED
    return float(spearmanr(first, second).statistic), ""


# --- the same, on tables of counts, a thousand at once ---


def _joint(matched: Matched, draws: Resampling) -> Floats:
    """Counts of (first, second) of each sample, samples × levels²."""
    cells = matched.levels**2
    index = draws.of * cells + matched.first * matched.levels + matched.second
    return np.bincount(index, minlength=draws.number * cells).reshape(draws.number, cells).astype(np.float64)


def _coincidences(units: Units, draws: Resampling) -> Floats:
    """Coincidences of each sample, samples × levels².

    A unit with m values adds each of its m (m − 1) ordered pairs with weight 1 / (m − 1). Krippendorff, Content
    Analysis, 2nd edition (2004), section 11.3.
    """
    levels = units.counts.shape[1]
    found = np.zeros((draws.number, levels * levels))
    place = np.searchsorted(draws.samples, units.sample)
    step = max(1, _CELLS // levels**2)
    for start in range(0, len(units.counts), step):
        counts = units.counts[start : start + step].astype(np.float64)
        pairs = counts[:, :, None] * counts[:, None, :]
        pairs[:, np.arange(levels), np.arange(levels)] -= counts
        pairs /= np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None]
        found += _member(place[start : start + step], draws.number).T @ pairs.reshape(len(counts), -1)
    return found


def _member(place: Ints, groups: int) -> Any:
    """A sparse matrix, entries × groups, with a 1 where an entry is of a group."""
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    number = len(place)
    return csr_array((np.ones(number), (np.arange(number), place)), shape=(number, groups))


def band(tables: Floats, width: int) -> Floats:
    """The share of pairs that differ by at most `width`; tables is … × levels × levels."""
    levels = np.arange(tables.shape[-1])
    inside = np.abs(levels[:, None] - levels[None, :]) <= width
    return _divided((tables * inside).sum((-2, -1)), tables.sum((-2, -1)))


def kappa_of(tables: Floats) -> Floats:
    """Quadratic-weighted kappa (Cohen 1968) of each table; NaN where all pairs lie in one cell of the diagonal."""
    levels = np.arange(tables.shape[-1])
    weights = (levels[:, None] - levels[None, :]) ** 2
    rows, columns = tables.sum(-1), tables.sum(-2)
    expected = rows[..., :, None] * columns[..., None, :]
    observed = (tables * weights).sum((-2, -1)) * tables.sum((-2, -1))
    return 1 - _divided(observed, (expected * weights).sum((-2, -1)))


def alpha_of(coincidences: Floats) -> Floats:
    """Krippendorff's alpha, ordinal, of each matrix of coincidences; NaN where only one value occurs.

    The ordinal distance of two values is the square of the distance of their mid-ranks (Krippendorff 2004,
    section 11.3.3: the values between them, and half of each of the two).
    """
    number = coincidences.sum(-1)
    middle = np.cumsum(number, -1) - number / 2
    distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (coincidences * distance).sum((-2, -1)) * (number.sum(-1) - 1)
    return 1 - _divided(observed, (number[..., :, None] * number[..., None, :] * distance).sum((-2, -1)))


def spearman_of(tables: Floats) -> Floats:
    """Spearman's correlation of each table: Pearson's of the mid-ranks, ties sharing theirs."""
    rows, columns = tables.sum(-1), tables.sum(-2)
    total = tables.sum((-2, -1))[..., None]
    first = np.cumsum(rows, -1) - rows / 2 - total / 2
    second = np.cumsum(columns, -1) - columns / 2 - total / 2
    together = (tables * first[..., :, None] * second[..., None, :]).sum((-2, -1))
    apart = (rows * first**2).sum(-1) * (columns * second**2).sum(-1)
    return _divided(together, np.sqrt(apart))


def _divided(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


# --- scores against something else ---


def correlation(x: NDArray[Any], y: NDArray[Any], sample: Ints) -> Estimate:
    """Spearman's correlation of any two quantities of answers, with its interval.

    In each resample the ranks are worked out anew: an answer drawn w times counts w times among the ranks.
    """
    value, why = spearman_value(x, y)
    if value is None:
        return Estimate(None, why=why)
    draws = Resampling(sample)
    ranks_of_x, ranks_of_y = _ranker(x), _ranker(y)

    def work(weights: Floats) -> Floats:
        middle = weights.sum(axis=1, keepdims=True) / 2
        first, second = ranks_of_x(weights) - middle, ranks_of_y(weights) - middle
        weighted = weights * first
        together = np.einsum("ij,ij->i", weighted, second)
        apart = np.einsum("ij,ij->i", weighted, first) * np.einsum("ij,ij,ij->i", weights, second, second)
        return _divided(together, np.sqrt(apart))

    return estimate(value, draws.each(work, len(x)), draws.number)


def _ranker(values: NDArray[Any]) -> Callable[[Floats], Floats]:
    """A function from weights (resamples × answers) to the answers' weighted mid-ranks, less one half."""
    levels, place = np.unique(values, return_inverse=True)
    member = _member(place, len(levels))

    def ranks(weights: Floats) -> Floats:
        counts: Floats = weights @ member
        return (np.cumsum(counts, axis=1) - counts / 2)[:, place]

    return ranks


def group_means(values: NDArray[Any], group: Ints, groups: int, sample: Ints) -> list[tuple[int, Estimate]]:
    """(n, mean with its interval) of each group 0 … groups − 1 of answers."""
    draws = Resampling(sample)
    index = draws.of * groups + group
    shape = (draws.number, groups)
    sums = np.bincount(index, weights=values, minlength=draws.number * groups).reshape(shape).astype(np.float64)
    counts = np.bincount(index, minlength=draws.number * groups).reshape(shape).astype(np.float64)
    resampled = _divided(draws.totals(sums), draws.totals(counts))
    found = []
    for number in range(groups):
        n = int(counts[:, number].sum())
        value = float(sums[:, number].sum() / n) if n else None
        in_samples = int(np.count_nonzero(counts[:, number]))
        found.append((n, estimate(value, resampled[:, number], in_samples, "No scores.")))
    return found
