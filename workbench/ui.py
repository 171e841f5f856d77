"""The app: FastAPI with the door before it, Gradio's pages mounted in it."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from gradio.routes import App
from starlette.staticfiles import StaticFiles

from storage.errors import PlumbError
from workbench import (
    api,
    chat_export,
    dataset_downloads,
    door,
    evaluation_api,
    find_api,
    images,
    job_downloads,
    job_notices,
    login,
    pair_api,
    people_api,
    roles,
)
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.navigation import PAGES, PageName, counts, header
from workbench.pages import (
    agreement,
    chat,
    contests,
    data,
    datasets,
    evaluation,
    jobs,
    judges,
    machine,
    models,
    pairs,
    people,
    samples,
)

STATIC = Path(__file__).parent / "static"
LARGEST_UPLOAD = "2gb"  # a zip with images, on the Data page; what reads pictures has a limit of its own
STATIC_PATH = "/plumb-static"  # Gradio has a /static of its own
BUILDERS: dict[PageName, Callable[[Context], gr.Blocks]] = {
    "samples": samples.build,
    "data": data.build,
    "judges": judges.build,
    "agreement": agreement.build,
    "pairs": pairs.build,
    "datasets": datasets.build,
    "jobs": jobs.build,
    "models": models.build,
    "chat": chat.build,
    "contests": contests.build,
    "evaluation": evaluation.build,
    "machine": machine.build,
    "people": people.build,
}


def build_ui(context: Context, doorkeeper: door.Door | None = None) -> FastAPI:
    """The whole app, ready for uvicorn."""
    doorkeeper = doorkeeper or door.Door(context.settings)
    app = build_api(context, doorkeeper)
    with warnings.catch_warnings():
        # Gradio 6.31 warns at every start of several pages, also where SSR is off.
        warnings.filterwarnings("ignore", message="SSR mode is not supported")
        gr.mount_gradio_app(
            app,
            build_pages(context, doorkeeper),
            path="/",
            auth_dependency=doorkeeper.identify,
            footer_links=[],
            run_history=False,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=LARGEST_UPLOAD,
            theme=_theme(),
            head=_head(context),
        )
    return app


def build_api(context: Context, doorkeeper: door.Door) -> FastAPI:
    """Everything but the pages: login, images, what is saved at a click, style and script; behind the door."""
    enough = [Depends(roles.guard(doorkeeper))]
    app = FastAPI(title="Plumb", openapi_url=None, docs_url=None, redoc_url=None, dependencies=enough)
    app.include_router(login.routes(doorkeeper))
    app.include_router(roles.routes(doorkeeper))
    app.include_router(people_api.routes(context, doorkeeper))
    app.include_router(images.routes(context))
    app.include_router(api.routes(context, doorkeeper))
    app.include_router(find_api.routes(context, doorkeeper))
    app.include_router(pair_api.routes(context, doorkeeper))
    app.include_router(chat_export.routes(context, doorkeeper))
    app.include_router(job_notices.routes(context, doorkeeper))
    app.include_router(job_downloads.routes(context))
    app.include_router(dataset_downloads.routes(context))
    app.include_router(evaluation_api.routes(context))
    app.add_exception_handler(PlumbError, api.answer_error)
    app.add_exception_handler(RequestValidationError, api.answer_invalid)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """For a container's health check; also shows that the web process stays light."""
        return {"status": "ok", "torch_imported": "torch" in sys.modules}

    app.mount(STATIC_PATH, StaticFiles(directory=STATIC), name="plumb-static")
    app.add_middleware(door.DoorMiddleware, door=doorkeeper)
    return app


def build_pages(context: Context, doorkeeper: door.Door | None = None) -> gr.Blocks:
    """All pages as one multi-page Gradio app; `workbench/pages/NAME.py` has `build(context)`."""
    with _without_spare_apps():
        with gr.Blocks(
            title="Plumb", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
        ) as root:
            _page(context, "samples")
        for name, title, path in PAGES[1:]:
            with root.route(title, path, show_in_navbar=False):
                _page(context, name)
        root.queue(default_concurrency_limit=CONCURRENCY, api_open=False, max_size=512)
    _answer_directly(root)
    _send_updates_whole(root)
    roles.guard_events(root, doorkeeper or door.Door(context.settings))
    # Gradio looks whether a file that a browser names was really uploaded only in apps that were "launched", and
    # ours is mounted: without this, a forged request could have any file of this machine read as a picture or as a
    # list of prompts.
    root.has_launched = True
    return root


def _answer_directly(root: gr.Blocks) -> None:
    """Leave Gradio's queue to what streams; each other event is one request with one answer.

    Gradio 6.31's server ends a page's event stream when nothing is pending. A click that joins while that
    message is under way finds the stream still open in the browser and is answered into none: its outcome shows
    at the page's next queued event, or never.
    """
    for function in root.fns.values():
        if not function.types_generator:
            function.queue = False


def _send_updates_whole(root: gr.Blocks) -> None:
    """Keep a stream's next frame from undoing what the last one changed.

    Gradio 6.31 sends an update (`gr.update(interactive=False)`) that differs from the last frame's as edits of
    that one, and its client makes them in the object that it has just handed to the page: where the next frame
    comes before the page has read it, a property that is not named any more is lost, and Stop stays pressable. A
    whole new update leaves the old one as it was. Can go when the client copies.
    """
    edits = root.handle_streaming_diffs

    def whole(function: Any, data: list[Any], *more: Any, **named: Any) -> list[Any]:
        wanted = list(data)
        sent = edits(function, data, *more, **named)
        if named.get("final"):  # the last frame's values, not edits of them
            return sent
        return [
            [["replace", [], new]] if isinstance(new, dict) and isinstance(old, list) and old else old
            for new, old in zip(wanted, sent, strict=True)
        ]

    root.handle_streaming_diffs = whole


@contextmanager
def _without_spare_apps() -> Iterator[None]:
    """Keep Gradio from building web apps that nobody uses.

    Gradio 6.31 builds one with all its 85 routes at the end of each `with` of Blocks and at each `queue()`: 14
    for our pages, half a second of the start. Only `mount_gradio_app`'s own, made later, serves; `launch`, which
    we do not call, is the only reader of the others. Can go when Gradio makes them on demand.
    """
    made = App.__dict__["create_app"]
    App.create_app = staticmethod(lambda *args, **kwargs: None)
    try:
        yield
    finally:
        App.create_app = made


def _page(context: Context, name: PageName) -> None:
    top = gr.HTML(header(name), apply_default_css=False, elem_classes="pb-top")
    # No .render(): Blocks made inside Blocks join their parent by themselves, a second time would double them.
    BUILDERS[name](context)

    def on_load(request: gr.Request) -> str:
        with context.database() as db:
            return header(name, counts(db), context.user(request), login=context.asks_login)

    gr.on(
        [gr.context.Context.root_block.load],
        told(on_load),
        None,
        [top],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


# Buttons beside the primary one look like our own, `.pb-button`, in light and dark alike (static/plumb.css).
_QUIET_BUTTONS = {
    "button_border_width": "1px",
    "button_border_width_dark": "1px",
    "button_secondary_background_fill": "var(--pb-paper)",
    "button_secondary_background_fill_dark": "var(--pb-paper)",
    "button_secondary_background_fill_hover": "var(--pb-paper)",
    "button_secondary_background_fill_hover_dark": "var(--pb-paper)",
    "button_secondary_border_color": "var(--pb-line)",
    "button_secondary_border_color_dark": "var(--pb-line)",
    "button_secondary_border_color_hover": "var(--pb-dim)",
    "button_secondary_border_color_hover_dark": "var(--pb-dim)",
    "button_secondary_text_color": "var(--pb-ink)",
    "button_secondary_text_color_dark": "var(--pb-ink)",
    "button_small_padding": "4px 10px",
    "button_small_text_size": "13px",
    "button_small_text_weight": "400",
    "button_medium_text_weight": "500",
    "button_medium_padding": "6px 12px",
}


def _theme() -> gr.themes.Base:
    """System fonts alone: Gradio's defaults may be fetched from another host."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        spacing_size=gr.themes.sizes.spacing_sm,
        text_size=gr.themes.sizes.text_sm,
        radius_size=gr.themes.sizes.radius_sm,
        font=sans,
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    ).set(**_QUIET_BUTTONS)


def _head(context: Context) -> str:
    """Our style and script; the address carries the content's hash, so a new version is never shadowed.

    Scores that wait in the browser carry the data folder's name: another folder served on the same port has
    candidates of the same numbers.
    """
    store = hashlib.sha256(b"browser:" + context.folder.key()).hexdigest()[:12]

    def url(name: str) -> str:
        digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
        return f"{STATIC_PATH}/{name}?v={digest}"

    sheets = "".join(f'<link rel="stylesheet" href="{url(file.name)}">' for file in sorted(STATIC.glob("*.css")))
    # plumb.js is what the others build on. Gradio puts these elements into a page that is parsed already, where a
    # browser runs scripts as they arrive; so they are asked for in a way that keeps their order.
    names = sorted((file.name for file in STATIC.glob("*.js")), key=lambda name: (name != "plumb.js", name))
    ordered = (
        f"for (const address of {json.dumps([url(name) for name in names])}) "
        '{ const script = document.createElement("script"); script.src = address; script.async = false; '
        "document.head.append(script); }"
    )
    return f'{sheets}<script>window.plumbStore="{store}"; {ordered}</script>'
