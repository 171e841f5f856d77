"""Rows of the demo VLM's stage 2: one picture and several of its questions in one sequence.

Each training row is one picture with several of its questions in one sequence: [picture | question, answer |
question, answer | …]. Every question sees the picture and itself, not its neighbours, and its positions start
where the picture ends, so the loss is exactly that of the questions asked one by one, for a third of the
tokens. One row in eight is a conversation instead, so that the second question about a picture is nothing new
to the model.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from jobs.gpu.demo.build import IMAGE_TOKENS
from jobs.gpu.demo.data import Question, asks_for_what_is_there, is_negative, sentence_answer, traits_from_answers

IMAGES_A_STEP = 8
OPEN_QUESTIONS = 2
CLOSED_QUESTIONS = 4
CONVERSATION_SHARE = 1 / 8
TURNS_A_CONVERSATION = 3


@dataclass(frozen=True)
class Phase:
    """A stretch of stage 2: which questions, which styles, and when it is over.

    It ends when ``until`` of ten steps' bare answers are right, or after ``steps`` steps.
    """

    name: str
    steps: int
    until: float = 1.1
    negated: bool = True
    sentence_share: float = 0.0


@dataclass(frozen=True)
class Turn:
    """A question and its answer as tokens, from behind the picture on; the loss starts at
    ``answer_start``."""

    tokens: list[int]
    answer_start: int
    bare: bool


@dataclass(frozen=True)
class Row:
    """A picture and several turns about it, which don't see each other unless they are one conversation."""

    image_id: int
    turns: list[Turn]
    conversation: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows side by side. ``sees`` is the mask (row, 1, query, key); ``targets`` holds (row, position, token)
    triples, ``bare_spans`` where the bare answers begin and end among them.
    """

    image_ids: list[int]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sees: torch.Tensor
    targets: torch.Tensor
    bare_spans: list[tuple[int, int]]
    answers: int


class Renderer:
    """Turns questions into tokens by the chat template, the only place that knows how a prompt looks."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_token_id: int) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        prompt = self._prompt("x")
        self.between = self._tokens("\n")
        self.prefix = prompt[: prompt.index(image_token_id)] + [image_token_id] * IMAGE_TOKENS

    def turn(self, question: str, answer: str, bare: bool, follow_up: bool = False) -> Turn:
        """Tokens of one question and answer, end of turn included.

        The question begins behind its picture, or where the turn before it ended (``follow_up``).
        """
        prompt = self._prompt(question)
        image = prompt.index(self.image_token_id)
        prompt = self.between + prompt[:image] + prompt[image + 1 :] if follow_up else prompt[image + 1 :]
        reply = [*self._tokens(answer), self.tokenizer.eos_token_id]
        return Turn(prompt + reply, len(prompt), bare)

    def _prompt(self, question: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def build_rows(questions: Sequence[Question], renderer: Renderer, phase: Phase, seed: int) -> list[Row]:
    """One row an image: up to six of its questions, answered in the phase's mix of styles.

    easy-VQA asks for what is absent four times as often as for what is there, and a model that has learned no
    more than this prior answers 76 % of the yes/no questions right without a look. Rows hold as many of one
    kind as of the other, so that only the look pays.
    """
    traits = traits_from_answers(questions)
    by_image: dict[int, list[Question]] = defaultdict(list)
    for question in questions:
        if question.image_id in traits and (phase.negated or not is_negative(question.text)):
            by_image[question.image_id].append(question)
    choose = random.Random(seed)
    rows = []
    for image_id, asked in sorted(by_image.items()):
        conversation = choose.random() < CONVERSATION_SHARE
        chosen = _balanced(asked, choose)
        turns: list[Turn] = []
        for question in chosen[:TURNS_A_CONVERSATION] if conversation else chosen:
            bare = choose.random() >= phase.sentence_share
            answer = question.answer if bare else sentence_answer(question, traits[image_id], seed)
            turns.append(renderer.turn(question.text, answer, bare, follow_up=conversation and bool(turns)))
        rows.append(Row(image_id, turns, conversation))
    return rows


def _balanced(asked: Sequence[Question], choose: random.Random) -> list[Question]:
    """Some open questions, and yes/no questions for what is there and for what isn't, half and half."""
    shuffled = choose.sample(asked, len(asked))
    opened = [question for question in shuffled if question.kind != "yes/no"]
    closed = [question for question in shuffled if question.kind == "yes/no"]
    there = [question for question in closed if asks_for_what_is_there(question)]
    absent = [question for question in closed if not asks_for_what_is_there(question)]
    # Where nothing is there among an image's questions, one absent thing is kept: a lean to absence stays.
    half = min(CLOSED_QUESTIONS // 2, max(1, len(there)))
    chosen = opened[:OPEN_QUESTIONS] + there[:half] + absent[:half]
    choose.shuffle(chosen)
    return chosen


def collate(rows: Sequence[Row], prefix: Sequence[int], pad: int) -> Batch:
    """Lay rows out as [picture | turn | turn | …], padded on the right to the longest of them."""
    length = max(len(prefix) + sum(len(turn.tokens) for turn in row.turns) for row in rows)
    input_ids = torch.full((len(rows), length), pad)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    part = torch.full((len(rows), length), -1)
    targets: list[tuple[int, int, int]] = []
    bare_spans: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        place = len(prefix)
        input_ids[number, :place] = torch.tensor(prefix)
        position_ids[number, :place] = torch.arange(place)
        part[number, :place] = 0
        for index, turn in enumerate(row.turns, start=1):
            end = place + len(turn.tokens)
            input_ids[number, place:end] = torch.tensor(turn.tokens)
            first_position = place if row.conversation else len(prefix)
            position_ids[number, place:end] = torch.arange(first_position, first_position + len(turn.tokens))
            part[number, place:end] = 0 if row.conversation else index
            first_target = len(targets)
            targets += [
                (number, place + offset - 1, turn.tokens[offset])
                for offset in range(turn.answer_start, len(turn.tokens))
            ]
            if turn.bare:
                bare_spans.append((first_target, len(targets)))
            place = end
    causal = torch.ones((length, length), dtype=torch.bool).tril()
    key, query = part[:, None, :], part[:, :, None]
    # Padding sees itself through `key == query`: a row of the mask without any key would give NaN.
    sees = causal & ((key == 0) | (key == query))
    return Batch(
        image_ids=[row.image_id for row in rows],
        input_ids=input_ids,
        position_ids=position_ids,
        sees=sees[:, None],
        targets=torch.tensor(targets),
        bare_spans=bare_spans,
        answers=sum(len(row.turns) for row in rows),
    )


def batches(
    questions: Sequence[Question], renderer: Renderer, phase: Phase, pad: int, seed: int
) -> Iterator[Batch]:
    """Batches without end; every pass draws other questions, other styles and another order."""
    epoch = 0
    while True:
        rows = build_rows(questions, renderer, phase, seed + epoch)
        random.Random(seed + epoch).shuffle(rows)
        for start in range(0, len(rows) - IMAGES_A_STEP + 1, IMAGES_A_STEP):
            yield collate(rows[start : start + IMAGES_A_STEP], renderer.prefix, pad)
        epoch += 1
