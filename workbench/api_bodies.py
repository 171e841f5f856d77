"""What the endpoints of `workbench.api` take: each field checked, no field besides."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

# SQLite's integers have 63 bits; a larger number can be no row's id.
RowId = Annotated[StrictInt, Field(ge=1, lt=2**63)]

# As `storage.traces.stamp` makes them.
Stamp = Annotated[StrictStr, Field(max_length=100)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScoreBody(Body):
    candidate: RowId
    metric: StrictStr
    value: StrictInt | None


class PairBody(Body):
    """`stamp`: the sample's, as the page knows it; with it, a pair that somebody else made since is not turned."""

    chosen: RowId
    rejected: RowId
    stamp: Stamp | None = None


class PairVerbBody(Body):
    """What the card showed: with it, a pair that is otherwise by now is left as it is."""

    was: StrictStr | None = None
    chosen: RowId | None = None


class MarkBody(Body):
    """A flag, a skip or a discard, set or taken back."""

    sample: RowId
    on: StrictBool


class NoteBody(Body):
    """`was`: what the note said when the person began to write, "" for none."""

    sample: RowId
    text: StrictStr
    was: StrictStr | None = None


class AnswerBody(Body):
    """A new answer, one made of another (`parent`), or one's own to be changed in place (`edit`).

    `was`: what it said when the person began to write; with `edit` alone.
    """

    sample: RowId
    text: StrictStr
    parent: RowId | None = None
    edit: RowId | None = None
    was: StrictStr | None = None


class SuggestionBody(Body):
    """A judge's judgement; its scores of this candidate, or of every one."""

    judgement: RowId
    candidate: RowId | None = None


class JudgeBody(Body):
    sample: RowId


class ItemBody(Body):
    text: str
    essential: StrictBool


class ChecklistBody(Body):
    sample: RowId
    items: list[ItemBody]
