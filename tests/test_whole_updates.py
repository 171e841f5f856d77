"""What a streaming event sends: each update whole, each growing value by its edits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from workbench.context import Context
from workbench.ui import build_pages


def test_an_update_in_a_stream_is_sent_whole(context: Context) -> None:
    root, function = build_pages(context), SimpleNamespace(outputs=[None, None])
    on, off, nothing = gr.update(interactive=True), gr.update(interactive=False), gr.skip()

    def sent(update: Any, log: Any, final: bool = False) -> list[Any]:
        found: Any = root.handle_streaming_diffs(
            function,
            [update, log],
            session_hash="s",
            run="1",
            final=final,
        )
        return list(found)

    assert sent(on, ["a"]) == [on, ["a"]]
    assert sent(off, ["ab"]) == [[["replace", [], off]], [["append", [0], "b"]]]
    assert sent(off, ["abc"]) == [[], [["append", [0], "c"]]]
    assert sent(nothing, nothing) == [[["replace", [], nothing]], [["replace", [], nothing]]]
    assert sent({"other": 1}, {"other": 1}, final=True) == [nothing, nothing]
