"""HTML of the Agreement page, and the line beside a sample. Pure: results in, HTML out; all texts escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

from storage.records import METRICS, Judgement
from storage.scores import latest_ok
from workbench.agreement import MEASURES, PEOPLE, levels_of
from workbench.agreement_charts import Band, heat_map, interval_chart, number, spread
from workbench.agreement_desk import Contrast, Disagreement, JudgeRow, LengthBias, Letters, Side, View
from workbench.agreement_stats import STATISTICS, Agreement, Estimate
from workbench.judge_marks import letter
from workbench.views import empty

FEW_SAMPLES = 20  # below, percentile intervals of resampled samples are known to be too narrow

# Of each column of a table: the statistic's name, its heading, what it says, whether it is a share.
COLUMNS = (
    ("exact", "The same", "Share of pairs of scores that are the same number", True),
    ("within_one", "Within one", "Share of pairs of scores that differ by at most one", True),
    (
        "kappa",
        "Weighted κ",
        "Cohen’s kappa with quadratic weights: agreement beyond chance; a difference of two weighs four "
        "times as much as one of one",
        False,
    ),
    (
        "alpha",
        "Krippendorff’s α",
        "Krippendorff’s alpha, ordinal, over all raters of the comparison on the answers that both sides scored",
        False,
    ),
    ("spearman", "Spearman’s ρ", "Rank correlation: whether both put the answers in the same order", False),
)


def address(first: str, second: str, metric: str) -> str:
    """A view of the page. With the path: Gradio's `<base>` would take a bare query to the start page."""
    return "/agreement?" + urlencode({"first": first, "second": second, "metric": metric})


# --- beside a sample ---


def sample_agreement(judgements: Sequence[Judgement]) -> str:
    """How far each judge and each person agree within one sample: a line a judge, "" where they share no score.

    Counts every metric that both gave of every candidate, in the latest judgements that are ok.
    """
    latest = latest_ok(judgements)
    people = [judgement for judgement in latest if judgement.rater.kind == "person"]
    judges = [judgement for judgement in latest if judgement.rater.kind == "judge"]
    known = [judge.rater.name for judge in judges]
    lines = []
    for judge in judges:
        told = [part for person in people if (part := _within(judge, person))]
        if told:
            alike = known.count(judge.rater.name) > 1
            terms = (
                f" ({', '.join(part for part in (judge.rater.version, judge.rater.mode) if part)})"
                if alike
                else ""
            )
            lines.append(
                f'<p class="pb-hint pb-agree">{escape(judge.rater.name + terms)} and {", ".join(told)}</p>'
            )
    return "".join(lines)


def _within(judge: Judgement, person: Judgement) -> str:
    """One judge against one person on this sample; "" where they share no score."""
    theirs = {score.candidate_id: score for score in person.scores}
    apart = [
        abs(given - other)
        for score in judge.scores
        if score.candidate_id in theirs
        for metric in METRICS
        if (given := score.value(metric)) is not None
        and (other := theirs[score.candidate_id].value(metric)) is not None
    ]
    if not apart:
        return ""
    query = urlencode({"first": judge.rater.id, "second": person.rater.id})
    return (
        f'<a href="/agreement?{escape(query)}">{escape(person.rater.name)}</a>: {apart.count(0)} of {len(apart)} '
        f"scores the same, mean difference {sum(apart) / len(apart):.2f}"
    )


# --- the page ---


def page(view: View) -> str:
    """Everything under the two dropdowns."""
    parts = [_notices(view)]
    if view.obstacle:
        parts.append(_obstacle(view))
    else:
        parts.append(_comparison(view))
    pictures = _pictures(view)
    if pictures:
        parts.append(_metrics(view) + f'<div class="pb-pictures">{pictures}</div>')
    if view.judges:
        parts.append(_judges(view))
    if view.disagreements:
        parts.append(_disagreements(view))
    return f'<div class="pb-agreement">{"".join(parts)}</div>'


def _notices(view: View) -> str:
    """What the page could show besides, and how to get there."""
    if view.obstacle == "no scores":
        return ""
    said = ""
    if not view.people:
        said = 'No person has scored an answer yet: <a href="/">score some on the Samples page</a>.'
    elif not view.judge_count:
        said = 'No judge has scored yet. <a href="/jobs?kind=judge">Let a judge score the candidates</a>.'
    return f'<div class="pb-notice info" role="status">{said}</div>' if said and not view.obstacle else ""


def _obstacle(view: View) -> str:
    if view.obstacle == "no scores":
        text = (
            "Agreement compares the scores of people and judges on the same answers. Score some answers yourself, "
            'and <a href="/jobs?kind=judge">let a judge score them</a>.'
        )
        return empty("No scores yet", text, "/", "Score on the Samples page")
    if view.obstacle == "no people":
        text = "A judge has scored, but no person: there is nothing to hold it against. Twenty samples say much."
        return empty("No person has scored yet", text, "/", "Score on the Samples page")
    if view.obstacle == "no judge":
        text = "One person has scored, and no judge. Let a judge score the same answers, or ask a second person."
        return empty("No judge has scored yet", text, "/jobs?kind=judge", "Judge the candidates")
    if view.obstacle == "alone":
        return empty("Only one person has scored", "Ask a second person to score some of the same samples.")
    first, second = view.compared
    if view.obstacle == "same":
        return empty("The same rater twice", "Choose two different raters above.")
    text = f"{escape(first.title)} and {escape(second.title)} have not scored one answer in common."
    if first.judge != second.judge:
        judge = first if first.judge else second
        text += (
            f" Score samples that {escape(judge.name)} has judged, or let it judge those that people have scored."
        )
        return empty("No answer in common", text, "/?state=judged", "See the judged samples")
    return empty("No answer in common", text)


def _comparison(view: View) -> str:
    """The table: a row a metric, and under it people against people as the mark to hold a judge to."""
    one, other = view.compared
    group = one == other
    label = "person / person" if group else " / ".join(names(one, other))
    body = "".join(_measure(view, measure, entry, label) for measure, entry in view.found.items())
    heads = "".join(f'<th scope="col" title="{escape(told)}">{title}</th>' for _, title, told, _ in COLUMNS)
    sides = "People among themselves" if group else f"{one.title} against {other.title}"
    samples = max(entry.samples for entry in view.found.values())
    few = (
        f'<p class="pb-hint warn">Samples that both scored: {samples}. Intervals from fewer than {FEW_SAMPLES} '
        "are too narrow to be trusted.</p>"
        if samples < FEW_SAMPLES
        else ""
    )
    ceiling = (
        " The rows <b>person / person</b> show how far people agree among themselves: "
        "more cannot be asked of a judge."
        if view.among_people
        else ""
    )
    return (
        f'<section class="pb-panel" aria-label="Agreement"><table class="pb-table"><caption>{escape(sides)} '
        f'<span class="pb-sub">on the answers that both scored, {samples:,} samples</span></caption>'
        f'<thead><tr><th scope="col">Metric</th><th scope="col">Who</th>'
        f'<th scope="col" title="Pairs of scores on the same answer">n</th>{heads}</tr></thead>{body}</table>{few}'
        '<p class="pb-hint">In brackets: 95 % intervals from 1,000 resamples of whole samples, since the answers '
        "to one question are not independent. Quality is helpfulness + correctness + coherence, 0 to 12."
        f"{ceiling}</p></section>"
    )


def names(first: Side, second: Side) -> tuple[str, str]:
    """Short names of two sides; where those are the same, with what tells the two apart."""
    if first.name != second.name:
        return first.name, second.name
    if first.judge != second.judge:  # a person may be called as a model is
        kinds = ("judge", "person") if first.judge else ("person", "judge")
        return f"{first.name} ({kinds[0]})", f"{second.name} ({kinds[1]})"
    ours, theirs = (
        (side.version, side.mode, "with checklist" if side.checklist else "without checklist")
        for side in (first, second)
    )
    apart = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    own, others = (", ".join(part for part in parts if part) for parts in zip(*apart, strict=True))
    return f"{first.name}, {own}", f"{second.name}, {others}"


def _called(view: View) -> tuple[str, str]:
    first, second = view.compared
    return names(first, second) if first != second else ("one person", "another")


def _measure(view: View, measure: str, entry: Agreement, label: str) -> str:
    first, second = view.compared
    chosen = ' aria-current="true"' if measure == view.metric else ""
    href = escape(address(first.key, second.key, measure), quote=True)
    among = view.among_people[measure] if view.among_people else None
    span = ' rowspan="2"' if among else ""
    rows = (
        f'<tr><th scope="rowgroup"{span}><a href="{href}" data-go{chosen}>{measure.capitalize()}</a></th>'
        f'<th scope="row" class="who">{escape(label)}</th>{_cells(entry)}</tr>'
    )
    if among:
        rows += f'<tr class="among"><th scope="row" class="who">person / person</th>{_cells(among)}</tr>'
    return f"<tbody{chosen}>{rows}</tbody>"


def _cells(entry: Agreement, statistics: Sequence[str] = STATISTICS) -> str:
    shares = {name: share for name, _, _, share in COLUMNS}
    cells = "".join(_cell(getattr(entry, name), shares[name]) for name in statistics)
    return f'<td class="n">{entry.n:,}</td>{cells}'


def _cell(found: Estimate, share: bool) -> str:
    if found.value is None:
        why = escape(found.why, quote=True)
        return f'<td><span class="pb-undefined" title="{why}" role="img" aria-label="{why}">–</span></td>'
    if found.low is None or found.high is None:
        return f'<td title="{escape(found.why, quote=True)}"><b>{_value(found.value, share)}</b></td>'
    between = f"{_bare(found.low, share)} to {_bare(found.high, share)}"
    return f'<td><b>{_value(found.value, share)}</b> <span class="between">({between})</span></td>'


def _value(value: float, share: bool) -> str:
    return f"{value * 100:.0f} %" if share else number(value)


def _bare(value: float, share: bool) -> str:
    return f"{value * 100:.0f}" if share else number(value)


# --- pictures of the chosen metric ---


def _metrics(view: View) -> str:
    links = "".join(_metric(view, measure) for measure in MEASURES)
    return f'<nav class="pb-tabs pb-measures" aria-label="Metric of the pictures and the list">{links}</nav>'


def _metric(view: View, measure: str) -> str:
    first, second = view.compared
    href = escape(address(first.key, second.key, measure), quote=True)
    here = ' aria-current="true"' if measure == view.metric else ""
    return f'<a class="pb-tab" href="{href}" data-go{here}>{measure.capitalize()}</a>'


def _pictures(view: View) -> str:
    pictures = []
    if view.confusion is not None:
        pictures.append(_confusion(view))
    highest = levels_of(view.metric) - 1
    if view.letters:
        pictures.append(_letters(view.letters, view.metric, highest))
    elif view.first and view.second and (view.first.judge or view.second.judge):
        pictures.append(
            '<p class="pb-hint">Score by letter: the judge read each answer alone, or its order was not kept.</p>'
        )
    if view.lengths:
        pictures.append(_lengths(view.lengths, view.metric, highest))
    return "".join(f'<section class="pb-panel">{picture}</section>' for picture in pictures if picture)


def _confusion(view: View) -> str:
    assert view.confusion is not None
    first, second = _called(view)
    twice = " Each pair of people counts in both orders." if view.counted_twice else ""
    return heat_map(view.confusion, first, second, f"{view.metric.capitalize()}: which scores met") + _explained(
        f"Pairs of scores on the same answer; the diagonal is where both gave the same.{twice}"
    )


def _letters(found: Sequence[Letters], metric: str, highest: int) -> str:
    """The judges' position bias; two judges share one picture."""
    places = max(len(line.means) for line in found)
    nothing = (0, Estimate(None, why="No scores."))
    titles = names(*(line.side for line in found)) if len(found) == 2 else [line.side.name for line in found]
    bands = [
        Band(title, [*line.means, *[nothing] * (places - len(line.means))])
        for title, line in zip(titles, found, strict=True)
    ]
    only = len(found) == 1
    chart = interval_chart(
        f"Mean {metric} by letter",
        [letter(place) for place in range(places)],
        bands,
        x_label="the letter under which the judge read the answer",
        highest=highest,
        reference=found[0].overall if only else None,
    )
    where = "all letters lie about the dashed mean" if only else "a judge’s marks lie level"
    return chart + _explained(
        f"Answers are shuffled before a judge reads them: without a bias for places, {where}."
    )


def _lengths(found: LengthBias, metric: str, highest: int) -> str:
    titles = (
        names(*(line.side for line in found.sides))
        if len(found.sides) == 2
        else [line.side.name for line in found.sides]
    )
    bands = [
        Band(title, line.means, _correlated(line.correlation))
        for title, line in zip(titles, found.sides, strict=True)
    ]
    places = [f"{start}–{end}" if start < end else str(start) for start, end in found.stretches]
    chart = interval_chart(
        f"Mean {metric} by length of the answer", places, bands, x_label="characters", highest=highest
    )
    if len(bands) == 1:
        same = "On all answers that were scored."
    elif not found.same:
        same = "Each on the answers that it scored: the two share none."
    elif sum(line.side.judge for line in found.sides) == 1:
        same = "Both on the same answers, so a slope that people share is no bias of the judge’s own."
    else:
        same = "Both on the same answers."
    return chart + _explained(f"{same} ρ is Spearman’s correlation of score and length.")


def _correlated(found: Estimate) -> str:
    if found.value is None:
        return f"ρ – {found.why}"
    between = spread(found)
    return f"ρ {number(found.value)} ({between})" if between else f"ρ {number(found.value)}"


def _explained(text: str) -> str:
    return f'<p class="pb-sub">{text}</p>'


# --- the largest disagreements ---


def _disagreements(view: View) -> str:
    first, second = _called(view)
    metric = "" if view.metric == "quality" else f'<th scope="col">{view.metric.capitalize()}</th>'
    rows = "".join(_disagreement(entry, view.metric) for entry in view.disagreements)
    by = "quality" if view.metric == "quality" else f"quality, then of {view.metric}"
    return (
        f'<section class="pb-panel" aria-label="Largest disagreements"><table class="pb-table pb-apart">'
        f'<caption>Largest disagreements <span class="pb-sub">by the difference of {by}; '
        f"{escape(first)} first, {escape(second)} second</span></caption>"
        f'<thead><tr><th scope="col">Sample</th><th scope="col">Question and answer</th><th scope="col">Who</th>'
        f'<th scope="col">Quality</th>{metric}</tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _disagreement(entry: Disagreement, metric: str) -> str:
    answer = entry.answer
    text = escape(_short(answer.text, 180)) or '<i class="pb-sub">(an empty answer)</i>'
    chosen = "" if metric == "quality" else f"<td>{_against(entry.metric)}</td>"
    return (
        f'<tr><th scope="row"><a href="/?sample={answer.sample_id}">#{answer.sample_id}</a></th>'
        f'<td class="words"><span class="pb-q">{escape(_short(answer.question, 120))}</span>'
        f'<span class="answer">{text}</span></td>'
        f'<td class="who">{escape(" / ".join(names(entry.first, entry.second)))}</td>'
        f"<td>{_against(entry.quality)}</td>{chosen}</tr>"
    )


def _against(scores: tuple[int | None, int | None]) -> str:
    one, other = ("–" if score is None else f"<b>{score}</b>" for score in scores)
    return f'{one}<span class="against">against</span>{other}'


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


# --- judges side by side ---


def _judges(view: View) -> str:
    rows = "".join(_judge(row, view) for row in view.judges)
    shown = ("exact", "kappa", "alpha")
    heads = "".join(
        f'<th scope="col" title="{escape(told)}">{title}</th>' for name, title, told, _ in COLUMNS if name in shown
    )
    return (
        '<section class="pb-panel" aria-label="Judges"><table class="pb-table"><caption>Judges against all people '
        '<span class="pb-sub">on quality, each on the answers that it shares with them</span></caption>'
        '<thead><tr><th scope="col">Judge</th><th scope="col">Rubric and mode</th><th scope="col">Checklist</th>'
        '<th scope="col">Samples</th><th scope="col" title="Pairs of scores on the same answer">n</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table>{_contrasts(view.contrasts)}</section>"
    )


def _judge(row: JudgeRow, view: View) -> str:
    here = ' aria-current="true"' if view.first == row.judge else ""
    href = escape(address(row.judge.key, PEOPLE, view.metric), quote=True)
    return (
        f'<tr{here}><th scope="row"><a href="{href}" data-go>{escape(row.judge.name)}</a></th>'
        f'<td class="words">{escape(row.judge.terms)}</td>'
        f"<td>{'with' if row.judge.checklist else 'without'}</td>"
        f'<td class="n">{row.found.samples:,}</td>{_cells(row.found, ("exact", "kappa", "alpha"))}</tr>'
    )


def _contrasts(contrasts: Sequence[Contrast]) -> str:
    """Two judges on the same answers, with the interval of the difference."""
    if not contrasts:
        return ""
    rows = "".join(_contrast(entry) for entry in contrasts)
    return (
        '<table class="pb-table"><caption>On the same answers <span class="pb-sub">quality, against the same '
        "people; the difference with its interval, both resampled alike</span></caption>"
        '<thead><tr><th scope="col">Judges</th><th scope="col">Samples</th><th scope="col">n</th>'
        '<th scope="col">The same</th><th scope="col">Weighted κ</th><th scope="col">Krippendorff’s α</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _contrast(entry: Contrast) -> str:
    if entry.checklists:
        who = f"{escape(entry.one.title)}: without, then with checklists"
    else:
        who = f"{escape(entry.one.title)}, then {escape(entry.other.title)}"
    cells = "".join(_change(*entry.values[name], share=name == "exact") for name in ("exact", "kappa", "alpha"))
    return (
        f'<tr><th scope="row" class="words">{who}</th><td class="n">{entry.samples:,}</td>'
        f'<td class="n">{entry.n:,}</td>{cells}</tr>'
    )


def _change(before: float | None, after: float | None, difference: Estimate, share: bool) -> str:
    if before is None or after is None or difference.value is None:
        why = escape(difference.why, quote=True)
        return f'<td><span class="pb-undefined" title="{why}" role="img" aria-label="{why}">–</span></td>'
    scale, digits, unit = (100, 0, " points") if share else (1, 2, "")
    told = f"{_signed(difference.value * scale, digits)}{unit}"
    between = (
        f' <span class="between">({_signed(difference.low * scale, digits)} to '
        f"{_signed(difference.high * scale, digits)})</span>"
        if difference.low is not None and difference.high is not None
        else ""
    )
    return f"<td>{_value(before, share)} → {_value(after, share)}<br><b>{told}</b>{between}</td>"


def _signed(value: float, digits: int) -> str:
    shown = number(value, digits)
    return shown if shown.startswith("−") or float(shown) == 0 else f"+{shown}"
