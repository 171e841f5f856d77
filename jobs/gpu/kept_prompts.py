"""What the model has read stays read: keys and values of conversations, from one turn to the next.

An entry is found by its content, as in SGLang's RadixAttention (Zheng et al. 2023, arXiv 2312.07104, section 3):
the same adapter and images, and the longest run of tokens that the new prompt begins with. So nobody needs to
say which conversation goes on, and an edited turn keeps what stands before it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

#: Bytes that may stay in memory. A turn of 1,000 tokens of LLaVA-1.5-13B in 16 bits is 0.8 GB.
MOST_BYTES = 2 * 2**30

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Prompt:
    """One column's prompt as the model takes it.

    Attributes:
        ids: (tokens,), on the CPU.
        images: a digest of each image, in order.
        spans: the tokens of each image; empty where they can't be told apart.
        text_from: behind the last token of an image; 0 without images.
    """

    ids: torch.Tensor
    images: tuple[str, ...] = ()
    spans: tuple[slice, ...] = ()
    text_from: int = 0


@dataclass(frozen=True)
class Kept:
    """Keys and values of the first `length` tokens of a prompt, each (1, heads, length, width), a pair a layer."""

    length: int
    layers: KeysValues


@dataclass(frozen=True)
class _Entry:
    adapter: str | None
    prompt: Prompt
    layers: KeysValues

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)


class KeptPrompts:
    """The latest conversations' keys and values, at most so many bytes of them. Not thread-safe."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._numbers = count()

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def find(self, adapter: str | None, prompt: Prompt) -> Kept | None:
        """What is known of this prompt's beginning; at least one token is left to read."""
        best, found = 0, None
        for number, entry in self._entries.items():
            length = shared(entry.prompt, prompt) if entry.adapter == adapter else 0
            if length > best:
                best, found = length, number
        if found is None:
            return None
        self._entries.move_to_end(found)
        layers = self._entries[found].layers
        return Kept(best, [(keys[:, :, :best], values[:, :, :best]) for keys, values in layers])

    def keep(self, adapter: str | None, prompt: Prompt, layers: KeysValues) -> None:
        """Remember them; an entry that this one continues goes, and the oldest where there are too many bytes.

        A longer entry stays: an edited turn, or an answer tried again, leaves the rest as it is.
        """
        for number, entry in list(self._entries.items()):
            whole = len(entry.prompt.ids)
            if whole > len(prompt.ids) or entry.adapter != adapter:
                continue
            if shared(entry.prompt, prompt) >= min(whole, len(prompt.ids) - 1):
                del self._entries[number]
        self._entries[next(self._numbers)] = _Entry(adapter, prompt, layers)
        while self._entries and self.bytes > self._most:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()


def shared(known: Prompt, prompt: Prompt) -> int:
    """How many of the prompt's first tokens stand in `known` with the same images, its last token left out.

    An image counts as a whole or not at all; where images can't be told apart, all must be the same.
    """
    most = min(len(known.ids), len(prompt.ids) - 1)
    differ = (known.ids[:most] != prompt.ids[:most]).nonzero()
    length = int(differ[0]) if len(differ) else most
    if any(one.images and not one.spans for one in (known, prompt)):
        return length if known.images == prompt.images and length >= prompt.text_from else 0
    for place, span in enumerate(prompt.spans):
        if span.start >= length:
            break
        same = place < len(known.spans) and known.spans[place] == span
        if not same or known.images[place] != prompt.images[place] or span.stop > length:
            return span.start
    return length


def image_spans(ids: torch.Tensor, image_token: int | None, images: int) -> tuple[slice, ...]:
    """Where the tokens of each image stand; empty where they can't be told apart.

    Runs of the image's token are one image each where there are as many runs as images; runs that touch are cut
    where all images have the same length.
    """
    places = (ids == image_token).nonzero().flatten().tolist() if image_token is not None else []
    if not images or not places:
        return ()
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])
    if len(runs) == images:
        return tuple(slice(start, stop) for start, stop in runs)
    size, rest = divmod(len(places), images)
    if rest or any((stop - start) % size for start, stop in runs):
        return ()
    return tuple(slice(at, at + size) for start, stop in runs for at in range(start, stop, size))


def digest(pixels: torch.Tensor) -> str:
    """Of one image's pixels, as the model takes them."""
    return hashlib.sha256(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def layers_of(cache: Any, row: int, columns: Sequence[int]) -> KeysValues:
    """Copies of one row's keys and values at these places of a cache."""
    places = torch.tensor(columns, device=cache.layers[0].keys.device)
    return [
        (layer.keys[row : row + 1].index_select(2, places), layer.values[row : row + 1].index_select(2, places))
        for layer in cache.layers
    ]
