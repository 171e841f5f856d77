"""Contests for tests: rows as a contest's job leaves them, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factories import USER, World
from storage import jobs as jobs_store
from storage.contests import add_contest_answer, conversation_at, create_contest
from storage.images import ensure_image
from storage.lifecycle import JobStatus
from storage.records import Job

COLUMNS = ("base", "7@lab", "8@lab")


@dataclass(frozen=True)
class MadeContest:
    """A contest with the world it is in."""

    world: World
    id: int
    job: Job
    columns: tuple[str, ...]

    def answer(
        self,
        number: int,
        questions: Sequence[str] = ("What is a circle?",),
        *,
        category: str = "",
        finish: str = "stop",
        speakers: Sequence[int] | None = None,
        given: Sequence[str] = (),
        picture: bytes | None = None,
        texts: Mapping[int, str] | None = None,
    ) -> int:
        """The prompt of this number with answers of all, or of these, speakers; returns its conversation.

        The first speaker stands on the left in odd prompts, and on the right in even ones.

        Args:
            given: a question and its answer that came with the prompt.
            texts: what a speaker answers, by its place in `columns`.
        """
        content: list[Any] = [{"type": "text", "text": questions[0]}]
        if picture is not None:
            image = ensure_image(self.world.db, self.world.folder, picture)
            content.insert(0, {"type": "image", "image": image.sha256})
        roles = ("user", "assistant")
        messages: list[Any] = [
            {"role": roles[place % 2], "content": [{"type": "text", "text": text}]}
            for place, text in enumerate(given)
        ]
        order = list(range(len(self.columns)))
        prompt = {
            "id": f"q{number}",
            "category": category,
            "reference": [],
            "system": "",
            "messages": [*messages, {"role": "user", "content": content}],
            "turns": len(questions),
            "order": order if number % 2 else order[::-1],
        }
        for turn, question in enumerate(questions):
            for column in order if speakers is None else speakers:
                add_contest_answer(
                    self.world.db,
                    self.job,
                    number=number,
                    turn=turn,
                    column=column,
                    text=(texts or {}).get(
                        column, f"answer {turn + 1} of speaker {column + 1} to prompt {number}"
                    ),
                    finish=finish,
                    prompt=prompt if turn == 0 else None,
                    question=[{"type": "text", "text": question}] if turn else None,
                )
        found = conversation_at(self.world.db, self.id, number)
        assert found is not None
        return found

    def end(self, status: JobStatus = JobStatus.DONE, reason: str = "") -> None:
        """The job comes to its end."""
        for step, why in ((JobStatus.STARTING, ""), (JobStatus.RUNNING, ""), (status, reason)):
            jobs_store.move(self.world.db, self.job.id, step, why)


def make_contest(
    world: World,
    total: int = 3,
    columns: Sequence[str] = COLUMNS[:2],
    name: str = "MT-Bench",
    blind: bool = True,
    user: str = USER,
) -> MadeContest:
    """A contest of a queued job, without an answer yet."""
    job = jobs_store.add_job(
        world.db,
        kind="contest",
        config={"model": "demo", "columns": list(columns), "name": name},
        user=user,
        slot_kind="device",
    )
    settings = {
        "model": "demo",
        "columns": list(columns),
        "prompts": total,
        "blind": blind,
        "file": "question.jsonl",
        "drawn": {"temperature": 0.0},
    }
    return MadeContest(world, create_contest(world.db, job, name, settings), job, tuple(columns))
