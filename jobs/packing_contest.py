"""What a contest's configuration names, resolved into the rows and images of its run folder.

A row is a prompt: {number, id, category, reference, system, messages, following, order}. `messages` are what is
given, without a system message; the last one is the first question. `following` holds the contents of further
questions. `order` says which column stands where in this prompt's conversation, from left to right.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from jobs.config_contest import ContestConfig
from jobs.outside import check_outside
from jobs.packing_training import Freight, adapter_of, images_shown
from jobs.prompt_lists import MOST_PROMPTS, Prompt, read_prompts, refuse
from jobs.rows import Row, with_file_names
from jobs.settings import Settings
from storage.chats import text_of
from storage.errors import UserError
from storage.images import ensure_image_file
from storage.records import LONGEST_NAME, Image, Message, Part, Sample
from storage.samples import get_samples


def pack_contest(db: Database, settings: Settings, config: ContestConfig, sample_ids: Sequence[int]) -> Freight:
    """The prompts of a contest, with who stands where in each, and their images; these are kept for good.

    Args:
        sample_ids: what is asked where no list of prompts is given.

    Raises:
        UserError: the list, or an image of it, cannot be used; there is nothing to ask, or too much; an adapter is
            another base's; an endpoint is not set, or does not serve the model.
        NotFound: an adapter is not there.
    """
    for speaker in config.speakers:
        if speaker.outside:
            check_outside(settings, speaker)
    adapters = tuple(adapter_of(db, number, config.model) for number in config.adapters_asked)
    if config.prompts:
        rows, images = _of_list(db, settings, config)
    else:
        rows, images = _of_samples(db, config, sample_ids)
    sides = orders(len(rows), len(config.columns), config.seed)
    numbered = [
        {"number": number, **row, "system": row["system"] or config.system.strip(), "order": list(order)}
        for number, (row, order) in enumerate(zip(rows, sides, strict=True), start=1)
    ]
    return Freight(numbered, images, adapters)


def told_of(config: ContestConfig, prompts: int) -> tuple[str, dict[str, Any]]:
    """(the name, the settings) of the contest that a job with so many prompts is for (`storage.contests`)."""
    file = Path(config.prompts).name if config.prompts else ""
    name = " ".join(config.name.split()) or Path(file).stem or "samples"
    drawn = config.model_dump(mode="json", include={"temperature", "top_p", "seed", "max_new_tokens"})
    return name[:LONGEST_NAME], {
        "model": config.model,
        "columns": list(config.columns),
        "prompts": prompts,
        "blind": config.blind,
        "file": file,
        "system": config.system,
        "drawn": drawn | config.attributes.model_dump(),
    }


def orders(prompts: int, columns: int, seed: int) -> list[tuple[int, ...]]:
    """Which column stands where, for each prompt: all arrangements equally often, in a seeded order.

    What is left over is taken from arrangements in which each column stands on each side once: so every column
    stands on every side equally often, or once more. The order runs over all prompts: in short blocks, whoever has
    seen the names of a few could tell the next.
    """
    draw = random.Random(f"{seed}/sides")
    whole = [tuple(one) for one in itertools.permutations(range(columns))]
    turned = [one[place:] + one[:place] for one in whole if one[0] == 0 for place in range(columns)]
    groups = [turned[start : start + columns] for start in range(0, len(turned), columns)]
    draw.shuffle(groups)
    for group in groups:
        draw.shuffle(group)
    rounds, rest = divmod(prompts, math.factorial(columns))
    found = [*whole * rounds, *list(itertools.chain(*groups))[:rest]]
    draw.shuffle(found)
    return found


def _of_list(db: Database, settings: Settings, config: ContestConfig) -> tuple[list[Row], dict[str, Image]]:
    path = Path(config.prompts)
    prompts = read_prompts(path, Path(config.images) if config.images else None, config.limit)
    found: dict[str, Image] = {}
    problems: list[str] = []
    for prompt in prompts:
        for file in prompt.images:
            if str(file) in found:
                continue
            try:
                found[str(file)] = ensure_image_file(db, settings.folder, file)
            except UserError as error:
                problems.append(f"line {prompt.line}: {str(error).rstrip('.')}")
    refuse(path.name, problems)
    rows = [_list_row(prompt, found) for prompt in prompts]
    return rows, {image.sha256: image for image in found.values()}


def _list_row(prompt: Prompt, images: dict[str, Image]) -> Row:
    system, messages = _parted(with_file_names(prompt.messages, images))
    return {
        "id": prompt.id,
        "category": prompt.category,
        "reference": list(prompt.reference),
        "system": system,
        "messages": messages,
        "following": [list(parts) for parts in prompt.following],
    }


def _of_samples(
    db: Database, config: ContestConfig, sample_ids: Sequence[int]
) -> tuple[list[Row], dict[str, Image]]:
    ids = list(sample_ids[: config.limit])
    if not ids:
        raise UserError(
            "There is nothing to ask: no list of prompts is given, and no sample fits the selection. Give a list "
            "in “prompts”, or import samples first."
        )
    if len(ids) > MOST_PROMPTS:
        raise UserError(
            f"samples: {len(ids):,} fit the selection, and a contest has at most {MOST_PROMPTS:,} prompts; set a "
            "limit."
        )
    samples = get_samples(db, ids)
    images = images_shown(db, [sample.messages for sample in samples])
    return [_sample_row(sample, images) for sample in samples], images


def _sample_row(sample: Sample, images: dict[str, Image]) -> Row:
    system, messages = _parted(with_file_names(sample.messages, images))
    return {
        "id": str(sample.id),
        "category": sample.source,
        "reference": [] if sample.reference is None else [sample.reference],
        "system": system,
        "messages": messages,
        "following": [],
    }


def _parted(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """(the system prompt, the other messages)."""
    told: list[Part] = [part for one in messages if one["role"] == "system" for part in one["content"]]
    return text_of(told).strip(), [one for one in messages if one["role"] != "system"]
