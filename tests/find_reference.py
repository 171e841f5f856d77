"""A database of everything that filters ask for, and the same filters as slow, plain Python."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from fractions import Fraction

from sqlite_utils import Database

from factories import World
from storage import discarding, remarks
from storage.candidates import candidates_of
from storage.finding import SampleFilter
from storage.pairs import choose_by_hand
from storage.records import METRICS, Judgement, JudgementState
from storage.rows import rows
from storage.samples import add_sample, get_samples
from storage.scores import add_judgement, ensure_rater, get_judgements, latest_ok, set_score

WORDS = ["red", "reed", "circle", "circular", "blue", "bluer", "Größe", "שלום", "π2", "x"]
PEOPLE = ["ada", "bob", "<b>eve</b>"]
JUDGES = ["gemini", "gpt"]
SOURCES = ["easy-vqa", "llava", "only one"]


def fill(world: World, seed: int, samples: int = 60) -> list[int]:
    """Samples of every kind, made through the functions that pages and jobs use."""
    generator = random.Random(seed)
    ids = []
    for number in range(samples):
        ids.append(_sample(world.db, number, generator, "only one" if number == samples // 2 else ""))
    for sample in ids:
        texts = [_text(generator, 4) for _ in range(generator.choice([0, 1, 2, 3]))]
        if texts:
            world.candidates(sample, texts)
        for _ in range(generator.choice([0, 0, 1, 2, 3])):
            judge(world.db, sample, generator)
    for _ in range(3 * samples):
        act(world.db, generator.choice(ids), generator)
    return ids


def _text(generator: random.Random, most: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(1, most)))


def _sample(db: Database, number: int, generator: random.Random, source: str) -> int:
    images = [{"type": "image", "image": f"{place:064x}"} for place in range(generator.choice([0, 0, 1, 2, 4]))]
    for part in images:
        db.conn.execute("INSERT OR IGNORE INTO images VALUES (?, 'png', 1, 1, 1, '')", [part["image"]])
    messages = [{"role": "user", "content": [*images, {"type": "text", "text": _text(generator, 3)}]}]
    for _ in range(generator.choice([0, 0, 1, 2, 3])):
        messages.insert(0, {"role": "assistant", "content": [{"type": "text", "text": "unsought"}]})
        messages.insert(0, {"role": "user", "content": [{"type": "text", "text": "unsought"}]})
    reference = generator.choice([None, _text(generator, 2)])
    split = generator.choice([None, "train", "test"])
    found = add_sample(
        db, source or generator.choice(SOURCES[:2]), str(number), messages, reference=reference, split=split
    )
    assert found is not None
    return found


def judge(db: Database, sample: int, generator: random.Random) -> None:
    """One call of a judge, which may have failed, or have scored only some answers."""
    rater = ensure_rater(db, "judge", generator.choice(JUDGES), version=generator.choice(["1", "2"]))
    state: JudgementState = generator.choice(["ok", "ok", "ok", "blocked", "truncated", "unparseable", "failed"])
    answers = [one for one in candidates_of(db, [sample])[sample] if generator.random() < 0.8]
    scores = [
        {"candidate_id": answer.id, **{metric: generator.randrange(5) for metric in METRICS}} for answer in answers
    ]
    add_judgement(db, rater_id=rater, sample_id=sample, job_id=None, state=state, scores=scores * (state == "ok"))


def act(db: Database, sample: int, generator: random.Random) -> None:
    """One act of a person."""
    user = generator.choice(PEOPLE)
    answers = [one.id for one in candidates_of(db, [sample])[sample]]
    kind = generator.randrange(12)
    on = generator.random() < 0.7
    if kind < 7 and answers:
        value = generator.choice([None, 0, 1, 2, 3, 4])
        set_score(db, user, generator.choice(answers), generator.choice(METRICS), value)
    elif kind == 7 and len(answers) > 1:
        choose_by_hand(db, user, *generator.sample(answers, 2))
    elif kind == 8:
        remarks.set_flag(db, user, sample, on)
    elif kind == 9:
        remarks.set_skip(db, user, sample, on)
    elif kind == 10:
        remarks.set_note(db, user, sample, _text(generator, 3) if on else "")
    elif kind == 11 and generator.random() < 0.5:
        (discarding.discard if on else discarding.keep)(db, user, sample)


@dataclass
class Known:
    """Everything of one sample, as its tables say it."""

    id: int
    source: str
    split: str | None
    images: int
    turns: int
    texts: list[str]
    answers: list[str]
    judgements: list[Judgement]
    pairs: int = 0
    flags: set[str] = field(default_factory=set)
    skips: set[str] = field(default_factory=set)
    discarded: bool = False

    @property
    def counting(self) -> list[Judgement]:
        return latest_ok(self.judgements)

    @property
    def people(self) -> set[str]:
        return {one.rater.name for one in self.counting if one.rater.kind == "person"}

    @property
    def judges(self) -> set[str]:
        return {one.rater.name for one in self.counting if one.rater.kind == "judge"}

    @property
    def problems(self) -> set[str]:
        latest: dict[int, str] = {}
        for judgement in sorted(self.judgements, key=lambda one: one.id):
            latest[judgement.rater.id] = judgement.state
        return set(latest.values()) - {"ok"}

    @property
    def gap(self) -> Fraction | None:
        found = []
        for candidate in {score.candidate_id for one in self.counting for score in one.scores}:
            differences = []
            for metric in METRICS:
                means = []
                for kind in ("judge", "person"):
                    values = [
                        value
                        for one in self.counting
                        for score in one.scores
                        if one.rater.kind == kind and score.candidate_id == candidate
                        if (value := score.value(metric)) is not None
                    ]
                    if values:
                        means.append(Fraction(sum(values), len(values)))
                if len(means) == 2:
                    differences.append(abs(means[0] - means[1]))
            if differences:
                found.append(Fraction(sum(differences), len(differences)))
        return max(found) if found else None

    def values(self, metric: str) -> set[int]:
        found = (score.value(metric) for one in self.counting for score in one.scores)
        return {value for value in found if value is not None}

    def selected(self, where: SampleFilter) -> bool:
        states = {
            "": True,
            "no candidates": not self.answers,
            "unjudged": bool(self.answers) and not self.judges,
            "judged": bool(self.answers) and bool(self.judges),
            "not scored by people": bool(self.answers) and not self.people,
            "scored by people": bool(self.answers) and bool(self.people),
            **{problem: problem in self.problems for problem in ("blocked", "truncated", "unparseable", "failed")},
            "paired": self.pairs > 0,
            "unpaired": self.pairs == 0,
            "flagged": bool(self.flags),
            "skipped": bool(self.skips),
            "discarded": self.discarded,
        }
        if not states[where.state] or (self.discarded and where.state != "discarded"):
            return False
        if (where.source and self.source != where.source) or (where.split and self.split != where.split):
            return False
        for asked, number in ((where.images, self.images), (where.turns, self.turns)):
            if asked and not (number >= 3 if asked == "3+" else number == int(asked)):
                return False
        if where.rater and where.rater not in self.people | self.judges:
            return False
        if where.metric:
            low, high = int(where.low or 0), int(where.high or 4)
            if not any(low <= value <= high for value in self.values(where.metric)):
                return False
        if where.gap and (self.gap is None or self.gap < -(-Fraction(where.gap) * 4 // 1) / 4):
            return False
        tokens = [token for text in self.texts for token in re.findall(r"\w+", text.lower())]
        return all(any(t.startswith(word.lower()) for t in tokens) for word in where.q.split())

    def value(self, order: str) -> int | None:
        """What it is listed by."""
        if order in ("", "newest"):
            return self.id
        if order == "gap":
            return None if self.gap is None else int(self.gap * 4)
        if order == "least scored":
            return len(self.people) if self.answers else None
        return max(map(len, self.answers), default=None)


def read_all(db: Database) -> list[Known]:
    """Every sample, read table by table."""
    ids = [row["id"] for row in rows(db, "SELECT id FROM samples ORDER BY id")]
    judged, answers = get_judgements(db, ids), candidates_of(db, ids)
    found = {}
    for one in get_samples(db, ids):
        texts = [answer.text for answer in answers[one.id]]
        turns = sum(message["role"] == "user" for message in one.messages)
        said = [one.question, one.reference or "", *texts]
        found[one.id] = Known(one.id, one.source, one.split, len(one.images), turns, said, texts, judged[one.id])
    for row in rows(db, "SELECT sample_id, text FROM notes"):
        found[row["sample_id"]].texts.append(row["text"])
    for row in rows(db, "SELECT sample_id FROM pairs"):
        found[row["sample_id"]].pairs += 1
    for row in rows(db, "SELECT sample_id, user FROM flags"):
        found[row["sample_id"]].flags.add(row["user"])
    for row in rows(db, "SELECT sample_id, user FROM skips"):
        found[row["sample_id"]].skips.add(row["user"])
    for row in rows(db, "SELECT sample_id FROM discards"):
        found[row["sample_id"]].discarded = True
    return list(found.values())


def expected(everything: list[Known], where: SampleFilter) -> list[int]:
    """The ids that a filter selects, in its order."""
    listed = [
        (value, one.id)
        for one in everything
        if one.selected(where) and (value := one.value(where.order)) is not None
    ]
    falling = where.order in ("newest", "gap", "longest answer")
    return [sample_id for _, sample_id in sorted(listed, reverse=falling)]
