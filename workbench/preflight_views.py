"""What a training will need, as HTML. Pure."""

from __future__ import annotations

from html import escape
from urllib.parse import urlencode

from jobs.preflight import Memory, Missing, Preflight, gigabytes
from workbench.job_views import figure_row
from workbench.job_words import duration


def needs(found: Preflight, jobs: int = 1) -> str:
    """The figures of a preflight check, its warnings before them.

    Args:
        jobs: of the sweep whose first job the figures are of; 1 where there is none.
    """
    warnings = "".join(f'<p class="plumb-error" role="alert">{escape(text)}</p>' for text in found.warnings)
    notes = [*found.notes]
    if found.memory is not None:
        notes.insert(0, _memory_words(found.memory, found.copies))
    if jobs > 1:
        notes.insert(0, f"These are the figures of the first of {jobs} jobs.")
    told = "".join(f'<p class="plumb-note">{escape(note)}</p>' for note in notes)
    if found.missing is not None:
        told += f'<p class="plumb-note">{_missing(found.missing)}</p>'
    return f'{warnings}<div class="plumb-estimate" role="status">{figure_row(_figures(found, jobs))}{told}</div>'


def _missing(missing: Missing) -> str:
    """How the base comes to this machine, with a link to the form that downloads it."""
    link = f"/jobs?{urlencode({'kind': 'download', 'model': missing.model, 'revision': missing.revision})}"
    size = f" ({gigabytes(missing.bytes)})" if missing.bytes is not None else ""
    return (
        f"The job downloads {escape(missing.model)} first{size}, and holds its device meanwhile: "
        f'<a href="{escape(link)}">download it before</a>.'
    )


def _figures(found: Preflight, jobs: int) -> dict[str, str]:
    batches = f", each of {found.accumulation:,} batches" if found.accumulation > 1 else ""
    shown = {
        "Rows to train on": f"{found.rows:,}",
        "Held-out pairs": f"{found.heldout:,} along the run, {found.report:,} for the report",
        "Steps": f"{found.steps:,}{batches}",
    }
    if found.parameters is not None and found.trainable is not None:
        share = found.trainable / max(1, found.parameters)
        shown["Parameters"] = _short(found.parameters)
        shown["Trained"] = f"{_short(found.trainable)} ({share:.1%})"
    if found.memory is not None:
        free = f" of {gigabytes(found.free_memory)} free" if found.free_memory is not None else ""
        shown[f"Memory on {found.device}"] = f"about {gigabytes(found.memory.total * found.copies)}{free}"
    if found.disk is not None:
        shown["Disk"] = f"at most {gigabytes(found.disk)} of {gigabytes(found.free_disk)} free"
    if found.seconds is None:
        shown["Time"] = "not known yet: try a step"
    else:
        several = f", {duration(found.seconds * jobs)} for all {jobs}" if jobs > 1 else ""
        shown["Time"] = f"about {duration(found.seconds)}{several}"
        shown["Told by"] = found.seconds_from
    return shown


def _memory_words(memory: Memory, copies: int) -> str:
    parts = (
        f"weights {gigabytes(memory.weights)}, what is trained with its optimizer {gigabytes(memory.trained)}, "
        f"activations {gigabytes(memory.activations)}, the program itself {gigabytes(memory.program)}"
    )
    each = f" (each of {copies} processes)" if copies > 1 else ""
    return f"Memory{each}, estimated: {parts}. “Try a step” measures it."


def _short(count: int) -> str:
    """13.4 billion, 138 million, 40,000."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"
