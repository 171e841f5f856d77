"""The Evaluation page's downloads, and hiding an evaluation at a click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from jobs.evaluation_exports import csv_of, latex_of, markdown_of
from jobs.evaluation_reading import Asked, read_table
from jobs.evaluation_report import FILES, html_of, read_report
from jobs.evaluation_table import Table
from storage.errors import NotFound
from workbench.context import Context
from workbench.evaluation_desk import hide, shelf_of
from workbench.evaluation_place import LONGEST

_TABLES: dict[str, tuple[str, Callable[[Table], str]]] = {
    "csv": ("text/csv", csv_of),
    "md": ("text/markdown", markdown_of),
    "tex": ("application/x-tex", latex_of),
}
Number = Annotated[int, Path(ge=1, lt=2**63)]
Text = Annotated[str, Query(max_length=LONGEST)]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/evaluation/{form}")
    def download(form: str, purpose: Text = "reporting", base: Text = "", grader: Text = "") -> Response:
        asked = Asked(purpose, base, grader).checked()
        media_type, text = made(context, form, asked)
        name = FILES[form] if asked.purpose == "reporting" else f"selection-{FILES[form]}"
        headers = {
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "private, no-store",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
        }
        return Response(text, media_type=f"{media_type}; charset=utf-8", headers=headers)

    @router.post("/evaluations/{number}/hide")
    def post_hide(number: Number) -> dict[str, Any]:
        return {"evaluation": hide(context, number, True).id}

    @router.post("/evaluations/{number}/show")
    def post_show(number: Number) -> dict[str, Any]:
        return {"evaluation": hide(context, number, False).id}

    return router


def made(context: Context, form: str, asked: Asked) -> tuple[str, str]:
    """(media type, text) of a download. Raises NotFound for a form that there is not."""
    book = shelf_of(context.folder).book
    with context.database() as db:
        if form == "html":
            return "text/html", html_of(read_report(db, asked, book))
        if form not in _TABLES:
            raise NotFound(f"There is no download {form[:40]!r}; there are {', '.join(FILES)}.")
        media_type, write = _TABLES[form]
        return media_type, write(read_table(db, asked, book))
