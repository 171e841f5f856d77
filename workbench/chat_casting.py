"""Who may stand in the chat's columns, and who does. Plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from jobs.outside import outside_choices
from storage.adapters import list_adapters
from storage.speakers import Speaker
from workbench.chat_desk import Cast, choices_of, default_cast, models_of
from workbench.context import Context
from workbench.forms import Choice
from workbench.vote_desk import HIDDEN, hidden_cast


def offered(context: Context, model: str) -> tuple[list[str], list[Choice]]:
    """(the bases that are known, what a column can speak with): the base, its adapters, outside models."""
    with context.database() as db:
        models, own = models_of(db), choices_of(db, model)
    return models, [*own, *outside_choices(context.settings)]


def cast_for(db: Database, model: str, number: int, adapter: int | None = None) -> Cast:
    """Whom a new conversation begins with: the base on the left, the newest adapters to the right of it."""
    cast = default_cast(db, model) if adapter is None else default_cast(db, adapter=adapter)
    if number == len(cast.speakers):
        return cast
    held = cast.needed
    other = next((one.id for one in list_adapters(db, cast.model) if one.id not in held), None)
    return Cast(cast.model, (cast.speakers[0], Speaker(cast.model, other), *cast.speakers[1:]))


def cast_held(
    context: Context, user: str, conversation: int | None, model: str, number: str, spelt: Sequence[str]
) -> Cast:
    """Who shall answer: as the dropdowns say, or as a blind conversation keeps to itself.

    Args:
        spelt: what the left, the middle and the right dropdown hold.

    Raises:
        UserError: a dropdown holds what is no speaker.
        NotFound: nobody knows any more who speaks here.
    """
    if HIDDEN in spelt:
        return hidden_cast(context, user, conversation)
    left, middle, right = spelt
    return Cast.read(model, left, middle, right) if number == "3" else Cast.read(model, left, right)
