"""The demo's samples, loaded from the page; and what stands there before anything is loaded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from storage.errors import UserError
from workbench import views
from workbench.context import Context

DEMO_DEFAULT, DEMO_LEAST, DEMO_MOST = 400, 20, 4000


def load_demo(context: Context, number: float | None) -> Iterator[str]:
    """Import easy-VQA's samples; yields HTML of the progress, at last of the outcome.

    The import runs in a thread of its own: a closed tab does not cut it off.

    Raises:
        UserError: the number is out of range; the wheel of easy-VQA is missing.
    """
    if number is None or number != int(number) or not DEMO_LEAST <= number <= DEMO_MOST:
        raise UserError(f"Number of samples = {number}: give a whole number from {DEMO_LEAST} to {DEMO_MOST}.")
    news: queue.SimpleQueue[tuple[int, int] | Exception | str] = queue.SimpleQueue()
    threading.Thread(target=_import_demo, args=(context, int(number), news), daemon=True).start()
    yield views.progress(0, int(number), "Loading")
    while True:
        item = news.get()
        if isinstance(item, Exception):
            raise item
        if isinstance(item, str):
            yield views.notice(item, "good")
            return
        yield views.progress(*item, "Loading")


def _import_demo(
    context: Context, number: int, news: queue.SimpleQueue[tuple[int, int] | Exception | str]
) -> None:
    from storage.easy_vqa import import_easy_vqa

    def tell(done: int, total: int) -> None:
        news.put((done, total))

    try:
        with context.database() as db:
            added = import_easy_vqa(db, context.folder, number, progress=tell)
        news.put(f"{added:,} samples of easy-VQA loaded.")
    except Exception as error:  # carried over to the thread that asked, where it is raised
        news.put(error)


WELCOME = """<div class="pb-hero"><h1>From questions about images to an aligned model</h1>
<p>Plumb walks one way: browse samples, let a model answer each several times, score the answers, make pairs of a
better and a worse one, train on them, and chat with the model before and after.</p>
<ol class="pb-way"><li><b>Samples</b> an image and a question</li>
<li><b>Candidates</b> several answers a sample</li>
<li><b>Scores</b> five metrics, 0 to 4</li><li><b>Pairs</b> chosen over rejected</li>
<li><b>Training</b> DPO with LoRA</li><li><b>Chat</b> base and aligned, side by side</li></ol>
<p>There are no samples yet. The demo brings easy-VQA: small pictures of coloured shapes, with questions and the
right answers. It needs no network, no GPU and no key.
Rows and images of your own are brought on the page <a href="/data">Data</a>.</p></div>"""
