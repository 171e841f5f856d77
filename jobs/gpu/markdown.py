"""Small pieces of Markdown: a model card's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cell(value: object) -> str:
    """A text as a table's cell holds it: on one line, and no bar ends it."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def code(value: object) -> str:
    """A text as code within a table."""
    return "`" + " ".join(str(value).split()).replace("|", "\\|").replace("`", "'") + "`"


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and Markdown, without a head."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {told} |" for name, told in facts.items())]) + "\n"


def table(values: Mapping[str, Any], head: str) -> str:
    if not values:
        return "none\n"
    lines = [f"| {head} | value |", "|---|---|"]
    for key, value in values.items():
        shown = f"{value:.4g}" if isinstance(value, float) else cell(value)
        lines.append(f"| {key} | {shown} |")
    return "\n".join(lines) + "\n"
