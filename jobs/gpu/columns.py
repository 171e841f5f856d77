"""The chat's columns as one batch: a base and its adapters, one forward a token for all of them.

Rows may differ in their prompt's length (after the first turn each column has answers of its own) and in how much
of it is known from the turn before. Both are padded on the left, what is known and what is new, so that a row's
tokens in the cache are, from left to right:

    padding | known tokens | padding | new tokens | answer

Padding is masked and takes no position: a row's positions run on from 0 without a gap. The image is encoded once
where all rows show the same new images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from jobs.gpu.decoding import (
    Answer,
    Sampling,
    check_cache,
    check_numbers,
    choose,
    draw,
    last_logits_only,
    read_one,
)
from jobs.gpu.kept_prompts import Kept, KeptPrompts, Prompt, digest, image_spans, layers_of
from jobs.gpu.row_adapters import RowAdapters

#: Inputs that belong to images, by their first dimension one a picture.
_PER_IMAGE = ("pixel_values", "image_sizes")


@dataclass(frozen=True)
class Asked:
    """What one column is asked: its adapter (PEFT's name of it) and its prompt, of `encode` for it alone."""

    adapter: str | None
    inputs: Mapping[str, Any]


@dataclass
class _Batch:
    """What the model has read of the open rows.

    Attributes:
        mask: (rows, tokens in the cache), 0 for padding.
        positions: (rows,), the next token's.
        last: (rows,), the tokens that were said and not read yet.
    """

    cache: Any
    mask: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.positions, self.last = self.mask[rows], self.positions[rows], self.last[rows]


class Columns:
    """Answers of several columns in the making. Rows are in the order of `asked`. Not thread-safe.

    Args:
        rows: the model's LoRA layers.
        kept: where known beginnings come from and where this turn is kept.
        seed: of the noise, the same for all columns: what differs comes from the adapter.
    """

    def __init__(
        self,
        model: Any,
        rows: RowAdapters,
        asked: Sequence[Asked],
        kept: KeptPrompts,
        sampling: Sampling,
        seed: int,
        ends: frozenset[int],
    ) -> None:
        self._model, self._rows, self._kept, self._sampling = model, rows, kept, sampling
        self._device = asked[0].inputs["input_ids"].device
        # Rows of one adapter lie beside each other (`RowAdapters`), whatever the order of the columns.
        self._open = sorted(range(len(asked)), key=lambda column: asked[column].adapter or "")
        self._asked = asked
        self._prompts = [prompt_of(model, one.inputs) for one in asked]
        self._ends = torch.tensor(sorted(ends), device=self._device, dtype=torch.long)
        self._noise = draw([seed] * len(asked), sampling, self._device)
        self._steps = 0
        self._batch: _Batch | None = None  # before the prompts are read
        self.answers = [Answer() for _ in asked]
        self.known = [0] * len(asked)  #: tokens of each prompt that were not read again

    @property
    def finished(self) -> bool:
        return not self._open

    @property
    def open(self) -> frozenset[int]:
        """The columns that have not ended."""
        return frozenset(self._open)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """One token of every open column; returns (column, token), end tokens left out.

        Raises:
            CacheUnfit: the model's cache can't be cut into rows; nothing was decoded.
            PlumbError: the model's numbers aren't finite.
        """
        if self.finished:
            return []
        with self._rows.speaking([self._asked[column].adapter for column in self._open]):
            logits, batch = self._read() if self._batch is None else (self._forward(self._batch), self._batch)
        if self._steps < self._sampling.min_new_tokens:
            logits = logits.index_fill(1, self._ends, -torch.inf)
        noise = self._noise[self._open, self._steps]
        tokens = choose(logits, noise, self._sampling.temperature, self._sampling.top_p)
        self._steps += 1
        batch.last = tokens
        self._batch = batch
        ended = torch.isin(tokens, self._ends).tolist()
        new, over = [], []
        for column, token, end in zip(list(self._open), tokens.tolist(), ended, strict=True):
            if end:
                self.answers[column].finish = "stop"
                over.append(column)
                continue
            self.answers[column].tokens.append(token)
            new.append((column, token))
            if self._steps >= self._sampling.max_new_tokens:
                over.append(column)
        self._leave(over)
        return new

    @torch.inference_mode()
    def stop(self, column: int) -> None:
        """Leave this column out of the batch from the next token on; what it has read stays known."""
        if column in self._open:
            self._leave([column])

    def _leave(self, over: Sequence[int]) -> None:
        stay = [row for row, column in enumerate(self._open) if column not in over]
        if self._batch is not None and over:
            for column in over:
                self._keep(self._batch, column)
            if stay:
                self._batch.select(torch.tensor(stay, device=self._device))
        self._open = [self._open[row] for row in stay]

    def _keep(self, batch: _Batch, column: int) -> None:
        """Keep what was read of this column; the last token of its answer was said and not read."""
        from transformers.cache_utils import DynamicLayer

        if any(type(layer) is not DynamicLayer for layer in batch.cache.layers):
            return  # one that slides has forgotten its beginning
        row, prompt = self._open.index(column), self._prompts[column]
        places = batch.mask[row].nonzero().flatten().tolist()
        said = torch.tensor(self.answers[column].tokens[: len(places) - len(prompt.ids)], dtype=prompt.ids.dtype)
        whole = replace(prompt, ids=torch.cat([prompt.ids, said]))
        self._kept.keep(self._asked[column].adapter, whole, layers_of(batch.cache, row, places[: len(whole.ids)]))

    # the prompt -----------------------------------------------------------------------------------------

    def _read(self) -> tuple[torch.Tensor, _Batch]:
        """Read what isn't known of the prompts; returns the logits behind each, (rows, vocabulary)."""
        known = [self._known(column) for column in self._open]
        starts = [found.length if found else 0 for found in known]
        for column, start in zip(self._open, starts, strict=True):
            self.known[column] = start
        before, past = self._joined(known)
        fresh = [self._prompts[column].ids[start:] for column, start in zip(self._open, starts, strict=True)]
        longest = max(len(ids) for ids in fresh)
        filler = int(self._ends[0])  # nobody sees it; an image's token would be asked for its picture
        ids = torch.stack([torch.cat([one.new_full((longest - len(one),), filler), one]) for one in fresh])
        mask = torch.stack([_ones(longest, len(one)) for one in fresh])
        ids, mask = ids.to(self._device), mask.to(self._device)
        ends = torch.tensor([len(self._prompts[column].ids) for column in self._open], device=self._device)
        positions = (ends[:, None] - longest + torch.arange(longest, device=self._device)).clamp_(min=0)
        mask = torch.cat([before, mask], dim=1)
        images, copies = self._images(starts)
        with encoding_once(self._model, copies):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                **images,
                **last_logits_only(self._model),
            )
        check_cache(output.past_key_values)
        logits = check_numbers(output.logits[:, -1])
        return logits, _Batch(output.past_key_values, mask, ends, ends)

    def _known(self, column: int) -> Kept | None:
        prompt, inputs = self._prompts[column], self._asked[column].inputs
        found = self._kept.find(self._asked[column].adapter, prompt)
        if found is None or found.length >= prompt.text_from:
            return found
        return found if can_cut(inputs, prompt) else None

    def _joined(self, known: Sequence[Kept | None]) -> tuple[torch.Tensor, Any]:
        """(mask, cache) of what is known, padded on the left to the longest; the cache is None for nothing."""
        longest = max((found.length for found in known if found), default=0)
        mask = torch.stack([_ones(longest, found.length if found else 0) for found in known]).to(self._device)
        if not longest:
            return mask, None
        from transformers import DynamicCache

        some = next(found for found in known if found)
        cache = DynamicCache()
        for number, (keys, values) in enumerate(some.layers):
            pair = []
            for place, like in ((0, keys), (1, values)):
                wide = like.new_zeros(len(known), like.shape[1], longest, like.shape[3])
                for row, found in enumerate(known):
                    if found:
                        wide[row, :, longest - found.length :] = found.layers[number][place][0]
                pair.append(wide)
            cache.update(pair[0], pair[1], number)
        return mask, cache

    def _images(self, starts: Sequence[int]) -> tuple[dict[str, Any], int]:
        """(the pictures that are yet to be read, how often each counts): once where all rows show the same."""
        rows = [self._pictures(column, start) for column, start in zip(self._open, starts, strict=True)]
        if all(names == rows[0][0] for names, _ in rows):
            return rows[0][1], len(rows)
        parts = [pictures for _, pictures in rows if pictures]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, 1

    def _pictures(self, column: int, start: int) -> tuple[tuple[str, ...], dict[str, Any]]:
        """(digests, inputs) of the pictures behind the first `start` tokens of a column's prompt."""
        prompt, inputs = self._prompts[column], self._asked[column].inputs
        if start >= prompt.text_from:
            return (), {}
        seen = sum(span.stop <= start for span in prompt.spans)
        pictures = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        # Only where a row of each is one image: `_known` has seen to it.
        return prompt.images[seen:], {name: value[seen:] for name, value in pictures.items()} if seen else pictures

    def _forward(self, batch: _Batch) -> torch.Tensor:
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(self._open), 1)], dim=1)
        logits = read_one(self._model, batch.last, batch.mask, batch.positions, batch.cache)
        batch.positions = batch.positions + 1
        return logits


def prompt_of(model: Any, inputs: Mapping[str, Any]) -> Prompt:
    """A column's prompt, with what tells its images apart."""
    ids = inputs["input_ids"][0].cpu()
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return Prompt(ids)
    token = getattr(base_of(model).config, "image_token_id", None)
    sizes = inputs.get("image_sizes")
    images = tuple(
        digest(picture) + (str(sizes[number].tolist()) if sizes is not None else "")
        for number, picture in enumerate(pixels)
    )
    places = (ids == token).nonzero().flatten()
    text_from = int(places[-1]) + 1 if len(places) else len(ids)
    return Prompt(ids, images, image_spans(ids, token, len(images)), text_from)


def can_cut(inputs: Mapping[str, Any], prompt: Prompt) -> bool:
    """Whether the inputs of the first images can be left out: one row of each input is one image."""
    strange = inputs.keys() - {"input_ids", "attention_mask", *_PER_IMAGE}
    return not strange and bool(prompt.spans) and len(inputs["pixel_values"]) == len(prompt.spans)


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def encoding_once(model: Any, copies: int) -> Iterator[None]:
    """Within it, what the model makes of the images counts for `copies` rows that show the same ones."""
    inner = getattr(base_of(model), "model", base_of(model))
    if copies == 1 or not hasattr(inner, "get_image_features"):
        yield
        return
    encode = inner.get_image_features

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        features = found.pooler_output
        if isinstance(features, torch.Tensor):
            found.pooler_output = features.repeat(copies, *[1] * (features.dim() - 1))
        else:
            found.pooler_output = list(features) * copies
        return found

    with patched(inner, "get_image_features", encode_once):
        yield


@contextlib.contextmanager
def patched(module: Any, name: str, value: Any) -> Iterator[None]:
    """Within it the module's attribute is this one; then it is what it was, the class's own included."""
    own = vars(module).get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


def _ones(length: int, ones: int) -> torch.Tensor:
    """A row of zeros that ends with so many ones."""
    row = torch.zeros(length, dtype=torch.long)
    row[length - ones :] = 1
    return row
