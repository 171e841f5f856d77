"""The Judges page as HTML: keys, prices and limits, today's use, a rubric. Pure: records in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from jobs.judges.ledger import ModelUse, Snapshot, dollars
from jobs.judges.terms import ModelTerms, Terms
from jobs.rubric import ANCHORS, Rubric, rubric_yaml
from storage.errors import UserError
from storage.records import METRICS

if TYPE_CHECKING:
    from workbench.judge_desk import Connection

NO_LIMIT = 10**12  # tokens a day, as the default of ModelTerms says

_PROVIDERS = {"gemini": "Gemini", "openai": "OpenAI-compatible endpoint"}
_OWN_ADDRESS = {"gemini": "Google's", "openai": "OpenAI's"}
_URL_NAMES = {"gemini": "PLUMB_GEMINI_URL", "openai": "PLUMB_OPENAI_URL"}


def keys(connections: Sequence[Connection]) -> str:
    """Whether keys are set, by which variable, and how each provider is reached."""
    return "".join(_connection(found) for found in connections)


def _connection(found: Connection) -> str:
    if found.key:
        chip = f'<span class="pb-chip accepted">key set</span> <code>{escape(found.key)}</code>'
    elif not found.obstacle:
        chip = '<span class="pb-chip">no key, none needed</span>'
    else:
        words = "no key" if found.provider == "gemini" else "not set up"
        chip = f'<span class="pb-chip proposed">{words}</span>'
    rows = [
        ("Client", escape(found.package) or f"{escape(found.wanted)} is not installed: pip install it"),
        (
            "Address",
            f"<code>{escape(found.address)}</code>" if found.address else _address(found),
        ),
    ]
    if found.wanted == "google-generativeai":
        rows.append(("", "Google supports its successor alone: PLUMB_GEMINI_CLIENT=google-genai."))
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    todo = ""
    if found.obstacle:
        lines = [f"export {found.names[0]}=…"]
        if found.provider == "openai":
            lines.insert(0, "export PLUMB_OPENAI_URL=http://127.0.0.1:8000/v1")
        todo = (
            f'<p class="pb-hint">{escape(found.obstacle)}</p>'
            f'<pre class="pj-command" tabindex="0">{escape(chr(10).join(lines))}</pre>'
        )
    return (
        f'<section class="pj-provider"><h3>{_PROVIDERS[found.provider]} {chip}</h3>'
        f'<dl class="pj-facts">{facts}</dl>{todo}</section>'
    )


def _address(found: Connection) -> str:
    name = _URL_NAMES[found.provider]
    if found.provider == "openai" and found.obstacle:
        return f"none; {name} sets it"
    return f"{_OWN_ADDRESS[found.provider]}; {name} sets another"


# --- prices and limits ---


def prices(terms: Terms) -> str:
    """The table with a field for each value and an empty row at its end; plumb reads the fields by their names."""
    fields = list(ModelTerms.model_fields)
    heads = "".join(f'<th scope="col">{escape(_head(name))}</th>' for name in fields)
    rows = "".join(_row(row) for row in terms.models)
    return (
        '<div class="pj-scroll"><table class="pj-prices" aria-label="Prices and limits of models">'
        f'<thead><tr>{heads}<th scope="col"><span class="pj-unseen">Remove</span></th></tr></thead>'
        f"<tbody>{rows}{_row(None)}</tbody></table></div>"
    )


def _head(name: str) -> str:
    return ModelTerms.model_fields[name].title or name


def _row(row: ModelTerms | None) -> str:
    cells = "".join(
        f'<td><input name="{name}" aria-label="{escape(_head(name), quote=True)}" '
        f'value="{escape(_shown(row, name), quote=True)}"{_hints(name)}></td>'
        for name in ModelTerms.model_fields
    )
    button = '<button type="button" class="pj-remove" data-remove aria-label="Remove this row">×</button>'
    return f"<tr>{cells}<td>{button}</td></tr>"


def _hints(name: str) -> str:
    if name == "model":
        return ' type="text" spellcheck="false" placeholder="another model"'
    mode = "decimal" if name.endswith("price") else "numeric"
    empty = ' placeholder="no limit"' if name == "tokens_a_day" else ""
    return f' type="text" inputmode="{mode}" size="9"{empty}'


def _shown(row: ModelTerms | None, name: str) -> str:
    if row is None:
        return ""
    value = getattr(row, name)
    if name == "tokens_a_day" and value >= NO_LIMIT:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if round(value, 2) == value else f"{value:.10f}".rstrip("0")
    return f"{value:,}" if isinstance(value, int) else str(value)


def today(found: Snapshot, terms: Terms) -> str:
    """What was asked today and what it cost, against the limits."""
    share = min(100.0, 100.0 * found.today.money / terms.money_a_day)
    held = f", {dollars(found.today.held)} set aside for requests under way" if found.today.held else ""
    money = (
        f"<p><b>{dollars(found.today.money)}</b> of {dollars(terms.money_a_day)}{held}</p>"
        f'<span class="pj-bar" role="progressbar" aria-label="money of today" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><span style="width:{share:.1f}%"></span></span>'
    )
    heading = f'<p class="pb-sub">{escape(found.day)}, in {escape(terms.day_begins_in)}</p>'
    if not found.models:
        return f'{heading}{money}<p class="pb-sub">Nothing was asked today.</p>'
    rows = "".join(_use(model, use, terms) for model, use in found.models.items())
    return (
        f'{heading}{money}<div class="pj-scroll"><table class="pj-use"><thead><tr><th scope="col">Model</th>'
        '<th scope="col">Requests</th><th scope="col">Tokens</th><th scope="col">Closed</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _use(model: str, use: ModelUse, terms: Terms) -> str:
    try:
        row = terms.of(model)
    except UserError:  # its row was removed
        requests, tokens = f"{use.requests:,}", f"{use.tokens:,}"
    else:
        requests = f"{use.requests:,} of {row.requests_a_day:,}"
        tokens = f"{use.tokens:,}" + (f" of {row.tokens_a_day:,}" if row.tokens_a_day < NO_LIMIT else "")
    closed = "–"
    if use.closed is not None:
        moment = datetime.fromtimestamp(use.closed.until, UTC)
        closed = f"until {moment:%H:%M} UTC: {escape(use.closed.why)}"
        if use.closed.kind == "day":
            closed += (
                f' <button type="button" class="pb-button small" data-open="{escape(model, quote=True)}" '
                f'aria-label="Ask {escape(model, quote=True)} again">Ask again</button>'
            )
    return (
        f'<tr><th scope="row">{escape(model)}</th><td>{requests}</td><td>{tokens}</td>'
        f'<td class="pj-why">{closed}</td></tr>'
    )


# --- rubrics ---


def rubric(found: Rubric, addressed: bool = False) -> str:
    """A version to read: its guide, then each metric with what its five values stand for.

    Args:
        addressed: the page's address is to name it.
    """
    address = f' data-url="?rubric={escape(found.version, quote=True)}"' if addressed else ""
    heads = "".join(f'<th scope="col">{value}</th>' for value in ANCHORS)
    rows = []
    for metric in METRICS:
        described = found.metrics[metric]
        anchors = "".join(f"<td>{_lines(described.anchors[value])}</td>" for value in ANCHORS)
        rows.append(
            f'<tr class="pj-definition"><th scope="rowgroup" colspan="5"><b>{metric.capitalize()}</b> '
            f"<span>{_lines(described.definition)}</span></th></tr><tr>{anchors}</tr>"
        )
    return (
        f'<article class="pj-rubric"{address}><h3>{escape(found.title)}</h3>'
        f'<details><summary>Guide</summary><div class="pj-guide">{escape(found.guide)}</div></details>'
        f'<div class="pj-scroll"><table aria-label="Metrics of {escape(found.version, quote=True)}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<details><summary>As YAML</summary><pre tabindex="0">{escape(rubric_yaml(found))}</pre></details>'
        "</article>"
    )


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
