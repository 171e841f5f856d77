"""What the policy answers to a few fixed samples and prompts, at each of a run's checkpoints.

Greedy, by the project's own decoding, so that two checkpoints differ by their weights alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from jobs.configs import TrainConfig
from jobs.gpu.answering import Answerer
from jobs.gpu.decoding import Sampling
from jobs.gpu.loading import Loaded
from jobs.gpu.material import Material
from jobs.gpu.profiles import as_seen
from jobs.gpu.prompts import Messages, chunks, encode, from_run, image_names, lengths, open_image
from jobs.gpu.ranks import first_here
from jobs.gpu.trainers import undisturbed
from jobs.reporter import Reporter
from jobs.runs import RunFolder
from jobs.steerlm import METHOD, SENTENCE, asked_of

SEEN = "seen"  # the folder of pictures as the model sees them
GAP = 4  # pixels between two pictures of one sample


@dataclass(frozen=True)
class Watched:
    """One watched item."""

    number: int
    messages: Messages  #: images opened
    prompt: str  #: the user's last words
    sample_id: int | None = None
    image: str | None = None  #: in the run folder


class Answers:
    """Asks the policy the same things again and again.

    Every process asks, so that weights which are spread over them are there; the first one reports.

    Args:
        policy: gives the model as it is to be asked.
        check: called between tokens; may raise to stop.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        loaded: Loaded,
        policy: Any,
        material: Material,
        reporter: Reporter,
        check: Callable[[], None],
    ) -> None:
        self._config, self._loaded, self._policy = config, loaded, policy
        self._reporter, self._check = reporter, check
        samples = watched_rows(material, config.kind, config.watched_samples)
        self._items = [self._sample(run, number, row) for number, row in enumerate(samples)]
        self._items += [
            Watched(len(samples) + place, prompt_messages(config, text), text)
            for place, text in enumerate(config.prompts)
        ]
        self._items = self._fitting(self._items)
        self._answerer: Answerer | None = None

    def __bool__(self) -> bool:
        return bool(self._items)

    def _sample(self, run: RunFolder, number: int, row: dict[str, Any]) -> Watched:
        names = image_names(row["messages"])
        image = None
        if names:
            image = f"{SEEN}/{number}.png"
            file = run.path / image
            if first_here() and not file.exists():
                file.parent.mkdir(exist_ok=True)
                draft = file.with_suffix(".part")
                pictures = [open_image(run.image(name)) for name in names]
                shown = [as_seen(self._loaded, picture) or picture for picture in pictures]
                side_by_side(shown).save(draft, format="PNG")
                draft.replace(file)
        return Watched(number, from_run(run, row["messages"]), asked(row["messages"]), row.get("sample_id"), image)

    def _fitting(self, items: list[Watched]) -> list[Watched]:
        """Those whose prompt leaves room for an answer; the others get a note."""
        context = self._loaded.context
        found = []
        for item in items:
            size = lengths(encode(self._loaded.processor, [item.messages]))[0]
            if context is None or size < context:
                found.append(item)
                continue
            what = f"prompt {item.prompt!r:.60}" if item.sample_id is None else f"sample {item.sample_id}"
            self._reporter.note(f"The watched {what} is left out: its {size} tokens fill the model's {context}.")
        return found

    def ask(self, step: int) -> None:
        """Report the policy's answers as they are at this step.

        Raises:
            Stopped: asked to stop.
        """
        if not self._items:
            return
        answered: list[dict[str, Any]] = []
        with undisturbed(self._policy):
            self._policy.eval()
            if self._answerer is None:
                self._answerer = Answerer(self._policy, self._loaded.processor, self._reporter.note)
            for items in chunks(self._items, self._config.batch_size):
                answered += self._answers(self._answerer, items)
        self._reporter.event("answers", step=step, answers=answered)

    def _answers(self, answerer: Answerer, items: Sequence[Watched]) -> list[dict[str, Any]]:
        inputs = encode(self._loaded.processor, [item.messages for item in items])
        room = self._config.watched_tokens
        if self._loaded.context is not None:
            room = max(1, min(room, self._loaded.context - max(lengths(inputs))))
        found = answerer.answers(
            [item.messages for item in items],
            [item.number for item in items],
            1,
            Sampling(temperature=0.0, max_new_tokens=room),
            between=self._check,
            inputs=inputs,
        )
        return [
            {
                "number": item.number,
                "prompt": item.prompt,
                "text": answer.text(self._loaded.processor.tokenizer),
                "tokens": len(answer.tokens),
                "sample_id": item.sample_id,
                "image": item.image,
            }
            for item, (answer,) in zip(items, found, strict=True)
        ]


def watched_rows(material: Material, method: str, count: int) -> list[dict[str, Any]]:
    """So many held-out rows of different samples, the first in an order that the data set decides.

    Pairs where there are any: their messages ask what is asked when the adapter is used. Those of SteerLM's other
    rows ask for the values of their own answers.
    """
    places = sorted(material.pairs or (() if method == METHOD else material.held_out))
    samples: dict[Any, dict[str, Any]] = {}
    for place in places:
        row = material.rows[place]
        samples.setdefault(row.get("sample_id", place), row)
    rows = list(samples.values())
    return random.Random(f"watched/{material.seed}").sample(rows, min(count, len(rows)))


def asked(messages: Messages) -> str:
    """The words of the last turn, without what SteerLM adds to them."""
    content = messages[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    return text.partition(SENTENCE)[0].strip()


def prompt_messages(config: TrainConfig, text: str) -> Messages:
    """A watched prompt as a chat, as the method's adapters are asked."""
    return asked_of(config.asked_as, [{"role": "user", "content": [{"type": "text", "text": text}]}])


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one."""
    if len(pictures) == 1:
        return pictures[0]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole
