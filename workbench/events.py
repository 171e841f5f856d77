"""House rules for Gradio events: every one has a concurrency limit, and errors reach the user as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from storage.errors import PlumbError

# Gradio runs one call at a time for each event unless told otherwise: 50 clients would wait for one another.
CONCURRENCY = 16


def read_id(text: str | None) -> int | None:
    """The id in a URL's parameter; None for what cannot be one (SQLite's integers have 63 bits)."""
    return int(text) if text and text.isdecimal() and len(text) < 16 else None


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler, with a `PlumbError` shown as a message; any other error is a bug and stays one."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **kwargs)
            except PlumbError as error:
                raise _shown(error) from error

        return stream

    @wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except PlumbError as error:
            raise _shown(error) from error

    return call


def _shown(error: PlumbError) -> gr.Error:
    return gr.Error(str(error), title="Not done", duration=None, print_exception=False)
