"""One thing that the doctor has looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

#: ok; works, but somebody should know; keeps jobs from running, or data from being safe.
State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        text: with figures.
        remedy: what to do; "" where nothing is to be done.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def guarded(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """What `look` finds. One that breaks is a warning of its own and keeps no other from being told."""
    found: list[Check] = []
    try:
        found.extend(look())
    except Exception as error:
        told = f"It could not be checked ({type(error).__name__}: {error})."
        found.append(Check(name, "warning", told))
    return found
