"""JSON schemas of replies: what each provider takes, and which models take none."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from jobs.judges.calls import CallError, Reply

Schema = dict[str, Any]

_NAMES_SCHEMA = re.compile(
    r"response[ _]?(format|schema|mime)|json[ _]?(schema|mode|object)|\bschema\b|structured[ _]output|guided",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"too (many states|complex|large|deep|long)|exceeds|nesting", re.IGNORECASE)


class SchemaRefusals:
    """Which models refuse a schema: found out by asking, remembered as long as the client lives."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, model: str, schema: Schema | None, send: Callable[[Schema | None], Reply]) -> Reply:
        """Send with the schema; where the model turns out to refuse it, once more without.

        Raises:
            CallError: as `send` does.
        """
        asked = None if self.known(model) else schema
        try:
            return send(asked)
        except CallError as error:
            if asked is None or not self.learn(model, error):
                raise
        return send(None)

    def known(self, model: str) -> bool:
        with self._lock:
            return model in self._models

    def learn(self, model: str, error: CallError) -> bool:
        """Whether this error refuses the schema, so that asking without one may help.

        A schema that is merely too large for the model is left out this once.
        """
        text = str(error)
        if error.kind != "refused" or error.status not in (400, 422) or not _NAMES_SCHEMA.search(text):
            return False
        if not _TOO_LARGE.search(text):
            with self._lock:
                self._models.add(model)
        return True


def gemini_schema(schema: Schema, *, ranges: bool) -> Schema:
    """A JSON schema in the words of Gemini's Schema, snake_case: type in capitals, no additionalProperties.

    Gemini's enum is of strings alone: any other is left out. `ranges`: keep minimum and maximum, which
    google-generativeai's Schema does not know.
    """
    kept: Schema = {"type": str(schema.get("type", "string")).upper()}
    if "properties" in schema:
        kept["properties"] = {
            name: gemini_schema(one, ranges=ranges) for name, one in schema["properties"].items()
        }
    if "items" in schema:
        kept["items"] = gemini_schema(schema["items"], ranges=ranges)
    if schema.get("required"):
        kept["required"] = list(schema["required"])
    if schema.get("enum") and all(isinstance(value, str) for value in schema["enum"]):
        kept["enum"] = list(schema["enum"])
    kept |= {name: schema[name] for name in ("minimum", "maximum") if ranges and name in schema}
    return kept


def order_properties(schema: Schema) -> None:
    """Give every object of a Gemini schema the order of its keys, in place: first the required ones, in turn.

    Without it Gemini writes keys in an order of its own (ai.google.dev/gemini-api/docs/structured-output), and a
    judge's reasoning would come after the numbers that it is to lead to.
    """
    properties = schema.get("properties")
    if isinstance(properties, dict):
        first = [name for name in schema.get("required") or [] if name in properties]
        schema["propertyOrdering"] = first + [name for name in properties if name not in first]
        for one in properties.values():
            order_properties(one)
    if isinstance(schema.get("items"), dict):
        order_properties(schema["items"])


def is_strict(schema: Schema) -> bool:
    """Whether OpenAI's strict mode takes it: no object has optional or further properties."""
    properties = schema.get("properties", {})
    if schema.get("type") == "object" and (
        schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(properties)
    ):
        return False
    return all(is_strict(one) for one in [*properties.values(), *([schema["items"]] if "items" in schema else [])])
