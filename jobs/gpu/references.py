"""The reference's log-probability of an answer, computed once and kept by content for all runs of a data folder.

The method depends on the reference at every step, and the reference never changes: stock DPO runs it again in each
epoch of each run. Here a sum of log-probabilities is a line in `references/<context>.jsonl`,

    {"key": "<sha256 of messages, images and answer>", "logp": -41.25}

where `<context>` is a sha256 over everything that all lines of a run have in common: the weights of the base and
of the adapter that training starts from, the model's settings, the processor with its image settings, the chat
template, the precision, the attention implementation, the path, and the versions of the libraries. Whatever
changes, the key changes with it: nothing is ever looked up by a name, a path or a time.

Lines are appended in one write and synced; a line that a crash tore is left out. Runs on the same context take
turns, so that four runs of a sweep compute the reference once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs.gpu.loading import Loaded
from jobs.gpu.prompts import chunks, image_names
from jobs.gpu.ranks import first_here
from jobs.hub import snapshot
from jobs.models import location
from jobs.reporter import versions
from jobs.runs import RunFolder
from storage.errors import PlumbError
from storage.files import write_atomically

FORMAT = 1
WAIT_SECONDS = 0.5

#: Settings of a model that say where it lies or who saved it, not what it computes.
NO_MATTER = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "architectures"})


@dataclass(frozen=True)
class Found:
    """What a run's references cost."""

    known: int  #: answers that were in the book
    computed: int  #: answers that weren't
    forwards: int  #: forward passes of the reference


class ReferenceBook:
    """The file of one context."""

    def __init__(self, folder: Path, context: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{context}.jsonl"
        self._lock = FileLock(folder / f"{context}.lock")
        self._known: dict[str, float] = {}
        self.read()

    def read(self) -> None:
        """Take up what other runs have written."""
        try:
            lines = self.file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._known[str(entry["key"])] = float(entry["logp"])
            except (ValueError, TypeError, KeyError):
                continue  # empty, or torn by a crash

    def get(self, key: str) -> float | None:
        return self._known.get(key)

    def add(self, found: Mapping[str, float]) -> None:
        """Keep these, on disk before it returns.

        Raises:
            ValueError: one of them is not a number.
        """
        if not all(math.isfinite(value) for value in found.values()):
            raise ValueError("a log-probability is not finite")
        text = "".join(json.dumps({"key": key, "logp": value}) + "\n" for key, value in found.items())
        with self.file.open("ab", buffering=0) as file:
            # A newline first: a torn last line must not swallow this one.
            file.write(b"\n" + text.encode("ascii"))
            os.fsync(file.fileno())
        self._known.update(found)

    @contextmanager
    def turn(self, wait: Callable[[], None]) -> Iterator[None]:
        """Within it no other run computes for this context; `wait` is called while one does, and may raise."""
        while True:
            try:
                with self._lock.acquire(timeout=0):
                    self.read()
                    yield
                    return
            except Timeout:
                wait()
                time.sleep(WAIT_SECONDS)


def context_of(
    loaded: Loaded, ends: frozenset[int], models_dir: Path, folder: Path, adapter: Path | None, path: str
) -> str:
    """The sha256 of everything but the answer that decides a reference's log-probability.

    Args:
        ends: ids that end an answer.
        folder: where the references lie, and with them what files' hashes are remembered.
        adapter: the one that training starts from; None for the base itself.
        path: the way in which the model is run.
    """
    model = loaded.model
    text = model.config.get_text_config()
    parts = {
        "format": FORMAT,
        "base": base_digest(loaded, models_dir, folder),
        "adapter": folder_digest(adapter, folder) if adapter is not None else "",
        "model": {key: value for key, value in model.config.to_dict().items() if key not in NO_MATTER},
        "processor": processor_settings(loaded.processor),
        "ends": sorted(ends),
        "dtype": str(model.dtype),
        "attention": str(text._attn_implementation),
        "path": path,
        "versions": {
            name: value for name, value in versions().items() if name in ("torch", "transformers", "trl")
        },
    }
    return digest(parts)


def digest(value: Any) -> str:
    """sha256 of a value as JSON; what JSON has no word for counts by its class."""
    text = json.dumps(value, sort_keys=True, default=lambda thing: type(thing).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def processor_settings(processor: Any) -> dict[str, Any]:
    """Everything that decides how messages and images become tensors."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("padding", "truncation"):  # of the last call, not of the tokenizer
        words.pop(passing, None)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    return {
        "class": type(processor).__name__,
        "settings": processor.to_dict(),
        "images": processor.image_processor.to_dict(),
        "template": template,
        # Some templates tell the model what day it is (Llama 3.2's): the same messages are other tokens tomorrow.
        "day": date.today().isoformat() if "strftime_now" in str(template) else "",
        "words": words,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


def base_digest(loaded: Loaded, models_dir: Path, folder: Path) -> str:
    """Of the base's weights: of its files, or, where none are found, of the weights in memory."""
    place = location(loaded.name, models_dir) or snapshot(loaded.name, loaded.revision or "")
    if place is not None and any(place.glob("*.safetensors")):
        return folder_digest(place, folder)
    found = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(dtype=_bytes()).numpy().tobytes())
    return found.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def folder_digest(place: Path, folder: Path) -> str:
    """sha256 over the safetensors files in `place` by name, and an adapter's settings."""
    files = sorted([*place.glob("*.safetensors"), *place.glob("adapter_config.json")])
    return digest({file.name: file_digest(file, folder / "weights.json") for file in files})


def file_digest(file: Path, memory: Path) -> str:
    """sha256 of a file; remembered by path, size and time of change, since 26 GB take half a minute.

    A file that changes keeping all three isn't noticed: no tool that writes weights does that.
    """
    real = file.resolve()
    state = real.stat()
    mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    known = _remembered(memory)
    entry = known.get(str(real))
    if entry is not None and entry[:3] == mark:
        return str(entry[3])
    with real.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    known = {**_remembered(memory), str(real): [*mark, found]}
    write_atomically(memory, json.dumps(known, indent=1))
    return found


def _remembered(memory: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def answer_keys(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of each row, the keys of its chosen and its rejected answer.

    The answer has its own key, not the pair: another pairing of the same answers, or a flipped label, computes
    nothing again. Images count by their bytes.
    """
    images: dict[str, str] = {}

    def image(name: str) -> str:
        if name not in images:
            images[name] = hashlib.sha256(run.image(name).read_bytes()).hexdigest()
        return images[name]

    keys = []
    for row in rows:
        shown = [image(name) for name in image_names(row["messages"])]
        asked = [
            {**message, "content": [_bare(part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in row["messages"]
        ]
        keys.append((digest([asked, shown, row["chosen"]]), digest([asked, shown, row["rejected"]])))
    return keys


def _bare(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """An image's part without its name: its bytes count."""
    return {"type": "image"} if part["type"] == "image" else part


def look_up(
    book: ReferenceBook,
    keys: Sequence[tuple[str, str]],
    lengths: Sequence[int],
    batch_size: int,
    compute: Callable[[Sequence[int]], tuple[Sequence[float], Sequence[float]]],
    tell: Callable[[int, int], None],
    wait: Callable[[], None],
) -> tuple[list[tuple[float, float]], Found]:
    """The reference's log-probabilities of each row's answers; those that aren't in the book are computed.

    Args:
        keys: of each row's chosen and rejected answer.
        lengths: tokens of each row, so that batches hold like lengths.
        compute: takes places of rows, returns log-probabilities of their chosen and rejected answers.
        tell: called with rows computed and rows to compute; may raise to stop; what was computed is kept.
        wait: called while another run computes for this context; may raise.

    Raises:
        PlumbError: a log-probability is not a number.
    """
    forwards = 0
    wanted = {key for pair in keys for key in pair}
    if not first_here():
        follow(book, wanted, wait)
    if all(book.get(key) is not None for key in wanted):
        return _values(book, keys), Found(len(wanted), 0, 0)
    with book.turn(wait):
        known = sum(book.get(key) is not None for key in wanted)
        missing = [place for place, pair in enumerate(keys) if any(book.get(key) is None for key in pair)]
        missing.sort(key=lambda place: lengths[place])
        for done, places in enumerate(chunks(missing, batch_size)):
            tell(done * batch_size, len(missing))
            chosen, rejected = compute(places)
            forwards += 1
            found = {}
            for place, pair in zip(places, zip(chosen, rejected, strict=True), strict=True):
                for key, value in zip(keys[place], pair, strict=True):
                    if not math.isfinite(value):
                        raise PlumbError(
                            f"The reference's log-probability of an answer of row {place} is {value}: the base "
                            "can't be trained in this precision. Use dtype bfloat16 or float32."
                        )
                    if book.get(key) is None:
                        found[key] = float(value)
            book.add(found)
        tell(len(missing), len(missing))
    return _values(book, keys), Found(known, len(wanted) - known, forwards)


def follow(book: ReferenceBook, wanted: Iterable[str], wait: Callable[[], None]) -> None:
    """Wait until the first of a training's processes has computed all of these; it tells how far it is.

    `wait` may raise: where the first one fails, whoever started the processes ends this one.
    """
    missing = {key for key in wanted if book.get(key) is None}
    while missing:
        wait()
        time.sleep(WAIT_SECONDS)
        book.read()
        missing = {key for key in missing if book.get(key) is None}


def _values(book: ReferenceBook, keys: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
    return [(book._known[chosen], book._known[rejected]) for chosen, rejected in keys]
