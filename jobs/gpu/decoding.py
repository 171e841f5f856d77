"""Answers from a model: n answers of each sample decode as one batch from ONE prefill.

The prompts of a batch are read once; their cache rows are then repeated n times, so that n answers cost one
reading of image and question, and each step multiplies one matrix for all answers.

Sampling noise belongs to the answer: uniform numbers drawn on the CPU by a generator that is seeded from
(seed, sample, number of the answer). In float32 an answer therefore depends neither on what else is in the
batch, nor on how many answers are drawn, nor on resuming. In bfloat16 the sums of a batched product depend on its
shape, so answers can differ there between batch sizes; each is a fair draw still.

Of the model's generation config only the end tokens are used: temperature, top-p, seed and the longest length
decide, and they are recorded with the answer.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from storage.errors import PlumbError

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `min_new_tokens` forbids the end before it; only benchmarks set it."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0
    min_new_tokens: int = 0


@dataclass
class Answer:
    """One answer: its tokens without the end token, and why it ended."""

    tokens: list[int] = field(default_factory=list)
    finish: Finish = "length"

    def text(self, tokenizer: Any) -> str:
        decoded: str = tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded.strip()


def noise_seed(seed: int, sample: object, number: int) -> int:
    """63 bits that belong to this answer of this sample under this seed."""
    digest = hashlib.sha256(f"{seed}/{sample}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def choose(logits: torch.Tensor, noise: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row, by inverting the cumulated distribution at the row's uniform number.

    Args:
        logits: (rows, vocabulary).
        noise: (rows,), uniform in [0, 1).
        temperature: 0 takes the most likely token.
        top_p: keep the smallest set of tokens whose probabilities reach it (Holtzman et al. 2020,
            arXiv 1904.09751, section 3.1); at least one.

    Returns:
        (rows,) token ids.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    # float64: over 100,000 tokens the rounding of a float32 sum would reach the size of rare tokens.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulated = probabilities.to(wide).cumsum(dim=-1)
    target = noise.to(logits.device, wide)[:, None] * cumulated[:, -1:]
    place = torch.searchsorted(cumulated, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return place[:, 0] if order is None else order.gather(1, place)[:, 0]


class Decoding:
    """A batch of answers in the making: one prefill, then one token a step for every open row.

    Row `i` is answer `i % answers` of prompt `i // answers`. Not thread-safe.

    Args:
        model: an image-text-to-text model, or a PeftModel around one; the caller chooses its adapter.
        inputs: of `encode`, left-padded.
        seeds: one seed a row (see `noise_seed`).
        answers: how many answers each prompt gets.
        ends: ids of tokens that end an answer.
    """

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        seeds: Sequence[int],
        sampling: Sampling,
        ends: frozenset[int],
        answers: int = 1,
    ) -> None:
        prompts = inputs["input_ids"].shape[0]
        if len(seeds) != prompts * answers:
            raise ValueError(f"{prompts} prompts with {answers} answers need as many seeds, not {len(seeds)}")
        self._model = model
        self._sampling = sampling
        self._copies = answers
        self._device = inputs["input_ids"].device
        self._inputs: dict[str, Any] | None = dict(inputs)
        self._ends = torch.tensor(sorted(ends), device=self._device, dtype=torch.long)
        self._noise = draw(seeds, sampling, self._device)
        self._open = list(range(prompts * answers))  # the answers that the rows of the batch stand for
        self._steps = 0
        self._cache: Any = None
        self._mask = inputs["attention_mask"]
        self._positions = self._mask.sum(dim=1)  # the next token's, one a row
        self._last: torch.Tensor | None = None
        self._done: set[int] = set()
        self.answers = [Answer() for _ in range(prompts * answers)]

    @property
    def finished(self) -> bool:
        return len(self._done) == len(self.answers)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """Decode one token of every open answer; returns (answer, token), end tokens left out.

        Raises:
            PlumbError: the model's numbers aren't finite.
        """
        if self.finished:
            return []
        logits = self._prefill() if self._inputs is not None else self._forward()
        if self._steps < self._sampling.min_new_tokens:
            logits = logits.index_fill(1, self._ends, -torch.inf)
        tokens = choose(
            logits, self._noise[self._open, self._steps], self._sampling.temperature, self._sampling.top_p
        )
        self._steps += 1
        self._last = tokens
        return self._settle(tokens.tolist(), torch.isin(tokens, self._ends).tolist())

    def _settle(self, tokens: list[int], ended: list[bool]) -> list[tuple[int, int]]:
        new: list[tuple[int, int]] = []
        for answer, token, end in zip(self._open, tokens, ended, strict=True):
            if answer in self._done:
                continue
            if end:
                self.answers[answer].finish = "stop"
                self._done.add(answer)
                continue
            self.answers[answer].tokens.append(token)
            new.append((answer, token))
            if self._steps >= self._sampling.max_new_tokens:
                self._done.add(answer)
        self._drop_finished()
        return new

    def _drop_finished(self) -> None:
        """Leave finished rows out of the batch once they are half of it: dropping copies the cache."""
        keep = [row for row, answer in enumerate(self._open) if answer not in self._done]
        if not keep or 2 * len(keep) > len(self._open):
            return
        rows = torch.tensor(keep, device=self._device)
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        assert self._last is not None
        self._last = self._last[rows]
        self._open = [self._open[row] for row in keep]

    def _prefill(self) -> torch.Tensor:
        assert self._inputs is not None
        inputs, self._inputs = self._inputs, None
        positions = (self._mask.cumsum(dim=1) - 1).clamp_(min=0)
        output = self._model(**inputs, position_ids=positions, use_cache=True, **last_logits_only(self._model))
        self._cache = output.past_key_values
        check_cache(self._cache)
        logits = check_numbers(output.logits[:, -1])
        if self._copies > 1:
            self._cache.batch_repeat_interleave(self._copies)
            self._mask = self._mask.repeat_interleave(self._copies, dim=0)
            self._positions = self._positions.repeat_interleave(self._copies, dim=0)
            logits = logits.repeat_interleave(self._copies, dim=0)
        return logits

    def _forward(self) -> torch.Tensor:
        assert self._last is not None
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._open), 1)], dim=1)
        logits = read_one(self._model, self._last, self._mask, self._positions, self._cache)
        self._positions = self._positions + 1
        return logits


def read_one(
    model: Any, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    """Read one token a row into the cache; returns the logits behind it, (rows, vocabulary).

    Args:
        tokens, positions: (rows,).
        mask: (rows, tokens in the cache and this one).
    """
    output = model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def check_numbers(logits: torch.Tensor) -> torch.Tensor:
    """The logits behind a prompt as they are.

    Raises:
        PlumbError: some of them are no numbers.
    """
    if bool(torch.isnan(logits).any()):
        raise PlumbError(
            "The model's output is not a number: its weights are broken, or the precision doesn't suit it. "
            "Try dtype bfloat16 or float32."
        )
    return logits


def draw(seeds: Sequence[int], sampling: Sampling, device: torch.device) -> torch.Tensor:
    """Uniform numbers of shape (rows, max_new_tokens), drawn on the CPU so that every device gets the same."""
    if sampling.temperature == 0:
        return torch.zeros(len(seeds), sampling.max_new_tokens, device=device)
    drawn = torch.stack(
        [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    )
    return drawn.to(device, torch.float32 if device.type == "mps" else torch.float64)


def last_logits_only(model: Any) -> dict[str, int]:
    """Ask for the last position's logits alone where the model can: a prompt of 2,000 tokens would make 2,000."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}


def check_cache(cache: Any) -> None:
    """Our loop repeats and drops rows of the cache: only a cache that grows by concatenation can do that.

    Raises:
        CacheUnfit: another kind.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )
    if not plain:
        raise CacheUnfit(f"its cache is a {type(cache).__name__} of its own kind")


class CacheUnfit(Exception):
    """The model's cache can't be repeated; take the model's own generate."""
