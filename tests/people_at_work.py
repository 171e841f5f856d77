"""Two people who act at random on a few samples, for tests of undo and redo; and what a database holds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from sqlite_utils import Database

from factories import World
from storage import bulk, discarding, pairs, remarks
from storage.candidates import candidates_of
from storage.errors import PlumbError
from storage.own_answers import edit_answer, write_answer
from storage.records import METRICS
from storage.rows import rows
from storage.scores import ensure_rater, set_score
from storage.suggestions import accept_suggestion
from storage.users import ensure_user

#: The log itself, and what only ever counts up.
APART = {"actions", "changes", "request_keys", "sqlite_sequence"}

Dump = frozenset[tuple[str, str]]


def dump(db: Database) -> Dump:
    """Every row of every table but the log's; of a search index what it finds by, not how it stores that."""
    kinds = {row["name"]: row["type"] for row in rows(db, "PRAGMA table_list") if row["schema"] == "main"}
    names = [
        name
        for name, kind in kinds.items()
        if kind == "table" and name not in APART and not name.startswith("sqlite_")
    ]
    found = {(name, repr(row)) for name in names for row in rows(db, f"SELECT * FROM {name}")}
    return frozenset(found)


def people(world: World, *names: str) -> None:
    """Make them known, as users and raters: that somebody was here is never undone."""
    for name in names:
        ensure_user(world.db, name)
        ensure_rater(world.db, "person", name)


@dataclass
class Bench:
    """Samples that people act on; those of `own` are a person's alone."""

    world: World
    samples: list[int]
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    def act(self, user: str, samples: list[int] | None = None) -> str:
        """One act at random on one of these samples; a refused one counts too."""
        here = samples or self.samples
        kind = self.random.choice(KINDS)
        try:
            getattr(self, f"_{kind}")(user, self.random.choice(here), here)
        except PlumbError:
            self.refused += 1
        self.done[kind] += 1
        return kind

    def _score(self, user: str, sample: int, here: list[int]) -> None:
        candidate = self._candidate(sample)
        set_score(
            self.world.db, user, candidate, self.random.choice(METRICS), self.random.choice([None, *range(5)])
        )

    def _pair(self, user: str, sample: int, here: list[int]) -> None:
        pairs.choose_by_hand(self.world.db, user, self._candidate(sample), self._candidate(sample))

    def _rule(self, user: str, sample: int, here: list[int]) -> None:
        ids = [one.id for one in candidates_of(self.world.db, [sample])[sample]]
        judgement = rows(self.world.db, "SELECT min(id) AS id FROM judgements WHERE sample_id = ?", [sample])[0][
            "id"
        ]
        chosen, rejected = self.random.sample(ids, 2)
        proposed = pairs.NewPair(sample, chosen, rejected, 9.5, 1 / 3, (judgement,))
        pairs.add_rule_pairs(self.world.db, user, {"margin": 2}, [proposed])

    def _status(self, user: str, sample: int, here: list[int]) -> None:
        found = pairs.pairs_of_sample(self.world.db, sample)
        pairs.set_status(self.world.db, user, [one.id for one in found[:3]], self.random.choice(pairs.STATUSES))

    def _flip(self, user: str, sample: int, here: list[int]) -> None:
        for one in pairs.pairs_of_sample(self.world.db, sample)[:1]:
            pairs.flip(self.world.db, user, one.id)

    def _flag(self, user: str, sample: int, here: list[int]) -> None:
        remarks.set_flag(self.world.db, user, sample, self.random.random() < 0.6)

    def _skip(self, user: str, sample: int, here: list[int]) -> None:
        remarks.set_skip(self.world.db, user, sample, self.random.random() < 0.6)

    def _note(self, user: str, sample: int, here: list[int]) -> None:
        remarks.set_note(self.world.db, user, sample, self.random.choice(["", "a", "<b>ב</b> 🙂", "x" * 300]))

    def _discard(self, user: str, sample: int, here: list[int]) -> None:
        self.random.choice([discarding.discard, discarding.keep])(self.world.db, user, sample)

    def _answer(self, user: str, sample: int, here: list[int]) -> None:
        parent = self.random.choice([None, self._candidate(sample)])
        write_answer(self.world.db, user, sample, f"answer {self.random.randrange(60)}", parent)

    def _edit(self, user: str, sample: int, here: list[int]) -> None:
        own = [one.id for one in candidates_of(self.world.db, [sample])[sample] if one.author == user]
        if own:
            edit_answer(self.world.db, user, self.random.choice(own), f"edited {self.random.randrange(60)}")

    def _suggestion(self, user: str, sample: int, here: list[int]) -> None:
        found = rows(
            self.world.db,
            "SELECT j.id FROM judgements j JOIN raters r ON r.id = j.rater_id"
            " WHERE r.kind = 'judge' AND j.sample_id = ?",
            [sample],
        )
        accept_suggestion(self.world.db, user, self.random.choice(found)["id"])

    def _bulk_flag(self, user: str, sample: int, here: list[int]) -> None:
        bulk.bulk_flag(self.world.db, user, self._some(here), self.random.random() < 0.6)

    def _bulk_skip(self, user: str, sample: int, here: list[int]) -> None:
        bulk.bulk_skip(self.world.db, user, self._some(here), self.random.random() < 0.6)

    def _bulk_discard(self, user: str, sample: int, here: list[int]) -> None:
        bulk.bulk_discard(self.world.db, user, self._some(here), self.random.random() < 0.5)

    def _some(self, here: list[int]) -> list[int]:
        return self.random.sample(here, self.random.randint(1, len(here)))

    def _candidate(self, sample: int) -> int:
        return self.random.choice(candidates_of(self.world.db, [sample])[sample]).id


KINDS = tuple(
    name[1:]
    for name in vars(Bench)
    if name.startswith("_") and name[1:] not in ("some", "candidate") and not name.startswith("__")
)


def bench(world: World, seed: int, samples: int = 6) -> Bench:
    """Samples with three answers each, which a judge has scored."""
    ids = [world.sample(number) for number in range(1, samples + 1)]
    for number in ids:
        world.judged(number, [9, 5, 2])
    return Bench(world, ids, random.Random(seed))
