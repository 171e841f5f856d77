"""What a training's page shows beside what all jobs have: curves, figures at the end, answers along the run.

Pure: records in, HTML out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from storage.lifecycle import ENDED
from storage.records import CheckpointAnswer, Job
from storage.runs import HELDOUT, REPORT
from workbench.charts import Series, line_chart
from workbench.compare import METRICS, Metric, shown
from workbench.job_views import Curves
from workbench.job_words import duration

#: A curve: metric, label, colour, dashed.
Line = tuple[str, str, int, bool]
Drawn = tuple[str, tuple[Line, ...], tuple[float, float] | None]


def _both(metric: str, label: str, colour: int) -> tuple[Line, Line]:
    """A curve of training, and the held-out one, dashed in the same colour."""
    return (metric, label, colour, False), (f"{HELDOUT}{metric}", f"{label}, held-out", colour, True)


CHARTS: tuple[Drawn, ...] = (
    ("Loss", _both("loss", "loss", 0), None),
    ("Reward accuracy", _both("reward_accuracy", "accuracy", 4), (0.0, 1.0)),
    (
        "Reward margin: is the image used?",
        (
            *_both("reward_margin", "margin", 3),
            (f"{HELDOUT}shown_margin", "with the image, held-out", 1, True),
            (f"{HELDOUT}blank_margin", "image blanked, held-out", 2, True),
        ),
        None,
    ),
    (
        "Rewards",
        (*_both("reward_chosen", "chosen", 1), *_both("reward_rejected", "rejected", 2)),
        None,
    ),
    ("Log-probability of the chosen answer", _both("logp_chosen", "chosen", 1), None),
    ("Distance from the reference, nats a token", ((f"{HELDOUT}kl", "KL, held-out", 4, True),), None),
)
MORE_CHARTS: tuple[Drawn, ...] = (
    ("Log-probability of the rejected answer", _both("logp_rejected", "rejected", 2), None),
    ("Margin between an image and a scrap of it", _both("image_margin", "margin", 3), None),
    (
        "Tokens of an answer",
        (
            ("answer_tokens", "trained on", 0, False),
            (f"{HELDOUT}chosen_tokens", "chosen, held-out", 1, True),
            (f"{HELDOUT}rejected_tokens", "rejected, held-out", 2, True),
        ),
        None,
    ),
    ("Pairs a second", (("pairs_per_second", "pairs", 0, False),), None),
    ("Rows a second", (("rows_per_second", "rows", 0, False),), None),
    ("Tokens a second", (("tokens_per_second", "tokens", 1, False),), None),
    ("Memory so far, GB", (("memory_gb", "peak", 2, False),), None),
    ("Learning rate", (("learning_rate", "learning rate", 0, False),), None),
    ("Gradient norm", (("gradient_norm", "gradient norm", 0, False),), None),
)

_EXTRA = (
    Metric("logp_chosen", "Log-probability of the chosen", "", "sum over the answer's tokens"),
    Metric("logp_rejected", "Log-probability of the rejected", "", "sum over the answer's tokens"),
)

_PICTURE = re.compile(r"seen/(\d{1,4}\.png)")


def charts(curves: Curves, more: bool = False) -> str:
    """The curves of a training; "" where there are none."""
    drawn = "".join(
        line_chart(
            title,
            [Series(label, curves.get(metric, ()), colour, dashed) for metric, label, colour, dashed in lines],
            "step",
            limits,
        )
        for title, lines, limits in (MORE_CHARTS if more else CHARTS)
    )
    return f'<div class="plumb-charts">{drawn}</div>' if drawn else ""


def tried(latest: Mapping[str, float]) -> dict[str, str]:
    """What a training's trial step and pace came to, as figures by their names."""
    found = {}
    if "trial_seconds" in latest:
        found["A step on the longest rows"] = duration_of(latest["trial_seconds"])
    if "trial_memory_gb" in latest:
        found["Its memory"] = f"{latest['trial_memory_gb']:.1f} GB"
    for name, what in (("pairs_per_second", "Pairs a second"), ("rows_per_second", "Rows a second")):
        if name in latest:
            found[what] = f"{latest[name]:.3g}"
    if "memory_gb" in latest:
        found["Memory so far"] = f"{latest['memory_gb']:.1f} GB"
    return found


def duration_of(seconds: float) -> str:
    """As `duration`, with digits where seconds are few."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def at_the_end(job: Job, latest: Mapping[str, float]) -> str:
    """A table of held-out and report figures side by side; "" before the first evaluation.

    Args:
        latest: of the weights that the run left, or of the newest evaluation.
    """
    rows = []
    for metric in (*METRICS, *_EXTRA):
        held, report = (latest.get(prefix + metric.name) for prefix in (HELDOUT, REPORT))
        if held is None and report is None:
            continue
        rows.append(
            f'<tr><th scope="row" title="{escape(metric.info)}">{escape(metric.title)}</th>'
            f"<td>{shown(metric.name, held)}</td><td>{shown(metric.name, report)}</td></tr>"
        )
    if not rows:
        return ""
    over = job.status in ENDED
    told = (
        "By the held-out pairs a run may be chosen, or stopped early. Those of the report are looked at once, at "
        "the end, and nothing is chosen by them: theirs are the figures to publish."
    )
    best = " The figures are those of the best held-out evaluation." if job.config.get("patience") else ""
    return (
        f'<table class="plumb-ends"><caption>{"At the end" if over else "So far"}</caption><thead><tr><td></td>'
        f'<th scope="col">Held-out</th><th scope="col">Report</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f'</table><p class="plumb-note">{told}{best}</p>'
    )


@dataclass(frozen=True)
class Checkpoints:
    """The answers to the watched items, by step and number."""

    steps: tuple[int, ...]
    answers: Mapping[int, Mapping[int, CheckpointAnswer]]

    @classmethod
    def of(cls, found: Sequence[CheckpointAnswer]) -> Checkpoints:
        answers: dict[int, dict[int, CheckpointAnswer]] = {}
        for answer in found:
            answers.setdefault(answer.step, {})[answer.number] = answer
        return cls(tuple(sorted(answers)), answers)

    def place(self, wanted: int | None) -> int:
        """The checkpoint that is shown, as a place among the steps: the newest where none is asked for."""
        last = max(0, len(self.steps) - 1)
        return last if wanted is None else min(max(0, wanted), last)


def slider_label(steps: Sequence[int]) -> str:
    """What the slider over these steps is called: all of them, or the first and the last where they are many."""
    named = [f"{step:,}" for step in steps]
    if len(named) > 12:
        named = [*named[:3], "…", *named[-3:]]
    return f"Checkpoints at steps {', '.join(named)}"


def checkpoint_view(job: Job, found: Checkpoints, wanted: int | None) -> str:
    """Each watched item with its picture, its prompt, the first answer and the one at the chosen checkpoint.

    Args:
        wanted: a place among the steps; None for the newest.
    """
    if not found.steps:
        return f'<p class="plumb-note">{escape(_no_answers(job))}</p>'
    first, step = found.steps[0], found.steps[found.place(wanted)]
    items = "".join(
        _item(job, found.answers[first].get(number), answer) for number, answer in found.answers[step].items()
    )
    begun = "before training" if step == 0 else f"after step {step:,}"
    changed = sum(
        answer.text != found.answers[first][number].text
        for number, answer in found.answers[step].items()
        if number in found.answers[first]
    )
    head = f"<b>Answers {begun}</b>" + (f" · {changed} of {len(found.answers[step])} changed" if step else "")
    return f'<p class="plumb-answers-head" role="status">{head}</p><div class="plumb-answers">{items}</div>'


def _no_answers(job: Job) -> str:
    config = job.config
    if config.get("only_trial"):
        return "Only a step was tried: nothing was asked."
    if not (config.get("watched_samples") or str(config.get("watched_prompts", "")).strip()):
        return "Nothing was watched: the settings name no samples and no prompts."
    if job.status in ENDED:
        return "There are no answers: the run ended before its first."
    return "No answers yet: the first come before step 1, the next at each evaluation."


def _item(job: Job, before: CheckpointAnswer | None, answer: CheckpointAnswer) -> str:
    whose = "text alone"
    if answer.sample_id is not None:
        whose = f'<a href="/?sample={answer.sample_id}">sample {answer.sample_id}</a>'
    asked = f'<p class="plumb-asked"><span class="plumb-asked-text">{escape(answer.prompt)}</span> {whose}</p>'
    picture = _picture(job, answer)
    if before is None or before.step == answer.step:
        texts = _said("Before training" if answer.step == 0 else f"Step {answer.step:,}", answer, _plain(answer))
    else:
        old, new = marked(before.text, answer.text)
        same = ' <span class="plumb-same">unchanged</span>' if before.text == answer.text else ""
        told = "Before training" if before.step == 0 else f"Step {before.step:,}"
        texts = _said(told, before, old) + _said(f"Step {answer.step:,}", answer, new, same)
    return f'<article class="plumb-item">{picture}<div class="plumb-said">{asked}{texts}</div></article>'


def _said(when: str, answer: CheckpointAnswer, text: str, note: str = "") -> str:
    length = f"{answer.tokens:,} token{'' if answer.tokens == 1 else 's'}"
    return (
        f'<div class="plumb-answer"><span class="plumb-when">{when} · {length}{note}</span>'
        f'<p class="plumb-answer-text">{text}</p></div>'
    )


def _plain(answer: CheckpointAnswer) -> str:
    return escape(answer.text) if answer.text.strip() else '<i class="plumb-silent">an empty answer</i>'


def _picture(job: Job, answer: CheckpointAnswer) -> str:
    found = _PICTURE.fullmatch(answer.image or "")
    if found is None:
        return ""
    words = f"The picture of “{answer.prompt[:80]}” as the model sees it"
    return (
        f'<img class="plumb-seen" src="/runs/{job.id}/seen/{found[1]}" alt="{escape(words)}" '
        f'title="as the model sees it" loading="lazy">'
    )


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, words that went as <del> in the first, words that came as <ins> in the second."""
    if not before.strip() or not after.strip():
        return tuple(  # type: ignore[return-value]
            escape(text) if text.strip() else '<i class="plumb-silent">an empty answer</i>'
            for text in (before, after)
        )
    # Whitespace stands with the word or the mark beside it, so that the texts can be put together again.
    old, new = (re.findall(r"\s*(?:\w+|[^\w\s])\s*", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], False)
    left, right = [], []
    for tag, start, end, other, rest in matcher.get_opcodes():
        gone, come = escape("".join(old[start:end])), escape("".join(new[other:rest]))
        left.append(gone if tag == "equal" or not gone else f"<del>{gone}</del>")
        right.append(come if tag == "equal" or not come else f"<ins>{come}</ins>")
    return "".join(left), "".join(right)
