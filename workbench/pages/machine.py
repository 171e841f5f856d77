"""The Machine page: devices as they are now, the disk with its budget and the bin, checks, backups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from storage.errors import DatabaseBusy, PlumbError
from workbench import machine_desk, machine_views
from workbench.context import Context
from workbench.events import CONCURRENCY, told
from workbench.views import notice

LOOK_SECONDS = 3.0

# Devices are looked at while the page is before somebody's eyes: a page left open in another tab wakes no driver.
_LOOK_JS = f"""
const look = () => {{
  if (!element.isConnected) return stop();
  const button = document.querySelector('#machine-look');
  if (!document.hidden && button) (button.tagName === 'BUTTON' ? button : button.querySelector('button')).click();
}};
const timer = setInterval(look, {int(LOOK_SECONDS * 1000)});
const stop = () => {{ clearInterval(timer); document.removeEventListener('visibilitychange', look); }};
document.addEventListener('visibilitychange', look);
"""

_RESTORE_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-restore]');
  if (!button) return;
  button.disabled = true;
  setTimeout(() => { button.disabled = false; }, 2000);  // refused, it stays: gr.HTML draws no equal value anew
  trigger('click', {restore: Number(button.dataset.restore)});
});
"""

_CHECK, _CHECKING, _AGAIN = "Check now", "Checking …", "Check again"

Updates = dict[Any, Any]


def _html(value: str = "", **arguments: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, elem_classes="pd-piece", **arguments)


class Disk:
    """What the data folder takes, its budget, the bin."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="pb-panel"):
            _html("<h2>Disk</h2>")
            self.usage = _html(elem_id="machine-disk")
            with gr.Row(elem_classes="pj-row pd-budget"):
                self.budget = gr.Textbox(
                    label="Budget, GB",
                    info="of the data folder; empty: no limit",
                    placeholder="no limit",
                    max_lines=1,
                    min_width=150,
                    elem_id="machine-budget",
                )
                self.save = gr.Button("Set", elem_id="machine-set-budget", elem_classes="pb-fit pb-plain")
            self.outcome = _html(elem_id="machine-budget-outcome")
        with gr.Column(elem_classes="pb-panel"):
            _html("<h2>Bin</h2>")
            self.bin = _html(elem_id="machine-bin", js_on_load=_RESTORE_JS)
            self.ask = gr.Button(
                "Empty the bin…", visible=False, elem_id="machine-empty", elem_classes="pb-fit pb-plain"
            )
            self.question = _html(elem_id="machine-bin-outcome")
            with gr.Row(visible=False, elem_classes="pd-sure") as self.sure:
                self.empty = gr.Button(
                    "Remove for good",
                    variant="stop",
                    elem_id="machine-empty-go",
                    elem_classes="pb-fit pb-plain",
                )
                self.keep = gr.Button("Keep them", elem_id="machine-keep", elem_classes="pb-fit pb-plain")


def build(context: Context) -> gr.Blocks:
    surgery = machine_desk.Surgery()
    with gr.Blocks(title="Machine · Plumb", analytics_enabled=False) as page:
        looking = gr.Button("look", visible="hidden", elem_id="machine-look")
        with gr.Row(elem_classes="pb-split pd-page"):
            with gr.Column(scale=1, min_width=480, elem_classes="pb-main pd-main"):
                with gr.Column(elem_classes="pb-panel"):
                    _html("<h2>Devices</h2>")
                    devices = _html(elem_id="machine-devices", js_on_load=_LOOK_JS)
                with gr.Column(elem_classes="pb-panel"):
                    with gr.Row(elem_classes="pd-head"):
                        _html("<h2>Checks</h2>")
                        check = gr.Button(_CHECK, elem_id="machine-check", elem_classes="pb-fit pb-plain")
                    checks = _html(elem_id="machine-checks")
            with gr.Column(scale=0, min_width=340, elem_classes="pb-side wide"):
                disk = Disk()
                with gr.Column(elem_classes="pb-panel"):
                    _html("<h2>Backups</h2>")
                    backups = _html(elem_id="machine-backups")
        _wire(context, page, surgery, looking, devices, check, checks, disk, backups)
    return page


def _wire(
    context: Context,
    page: gr.Blocks,
    surgery: machine_desk.Surgery,
    looking: Any,
    devices: Any,
    check: Any,
    checks: Any,
    disk: Disk,
    backups: Any,
) -> None:
    quiet: dict[str, Any] = {
        "concurrency_limit": CONCURRENCY,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    seen = gr.State({})
    asked = gr.State(None)  # when it was asked whether to empty the bin: what comes into it later stays
    shown = [devices, disk.usage, disk.bin, disk.ask, seen]

    def show(known: Mapping[str, int]) -> Updates:
        """What differs from what the browser has."""
        found = look(context)
        digests = {name: hash(html) for name, html in found.items()}
        news = {name for name, digest in digests.items() if known.get(name) != digest}
        parts = {"devices": devices, "disk": disk.usage, "bin": disk.bin}
        updates: Updates = {part: found[name] for name, part in parts.items() if name in news}
        if "bin" in news:
            updates[disk.ask] = gr.update(visible="data-restore" in found["bin"])
        return updates | {seen: digests}  # Gradio takes no empty answer

    def opening() -> Updates:
        usage = machine_desk.storage(context).usage
        return show({}) | {
            disk.budget: machine_desk.budget_text(usage),
            checks: machine_views.checks(surgery.last, datetime.now(UTC)),
            check: gr.update(value=_AGAIN if surgery.last else _CHECK, interactive=True),
            backups: machine_views.backups(machine_desk.backup_commands(context)),
        }

    def ticking(known: dict[str, int]) -> Updates:
        try:
            return show(known)
        except DatabaseBusy:
            return {seen: known}  # the next look is three seconds away

    def checking() -> tuple[str, Any]:
        report = surgery.check(context.settings)
        return machine_views.checks(report, datetime.now(UTC)), gr.update(value=_AGAIN, interactive=True)

    def budgeting(request: gr.Request, text: str) -> Updates:
        try:
            outcome = notice(machine_desk.set_budget(context, context.user(request), text), "good")
        except PlumbError as error:
            return {disk.outcome: notice(str(error), "bad")}
        usage = machine_desk.storage(context)
        return {
            disk.outcome: outcome,
            disk.usage: machine_views.disk(usage),
            disk.budget: machine_desk.budget_text(usage.usage),
        }

    def restoring(known: dict[str, int], event: gr.EventData) -> Updates:
        job_id = int((event._data or {}).get("restore") or 0)
        if not job_id:
            return {seen: known}
        return binning(known, lambda: machine_views.restored(machine_desk.restore(context, job_id)))

    def emptying(known: dict[str, int], moment: str | None) -> Updates:
        before = datetime.fromisoformat(moment) if moment else None
        return binning(known, lambda: notice(machine_desk.empty_bin(context, before), "good"))

    def binning(known: Mapping[str, int], act: Callable[[], str]) -> Updates:
        """Do it, tell, and draw the bin anew also where it is what it was: a button has been disabled."""
        try:
            outcome = act()
        except PlumbError as error:
            outcome = notice(str(error), "bad")
        rest = {name: digest for name, digest in known.items() if name != "bin"}
        return {disk.question: outcome, disk.sure: gr.update(visible=False)} | show(rest)

    def asking() -> tuple[str, Any, str]:
        moment = datetime.now(UTC).isoformat()
        found = machine_desk.waste(context)
        return machine_views.emptying(found), gr.update(visible=bool(found.runs)), moment

    page.load(told(opening), None, [*shown, disk.budget, check, checks, backups], **quiet)
    looking.click(told(ticking), [seen], shown, **quiet)
    check.click(lambda: gr.update(value=_CHECKING, interactive=False), None, [check], **quiet).then(
        told(checking), None, [checks, check], **quiet
    )
    gr.on(
        [disk.save.click, disk.budget.submit],
        told(budgeting),
        [disk.budget],
        [disk.outcome, disk.usage, disk.budget],
        **quiet,
    )
    bin_shown = [*shown, disk.question, disk.sure]
    disk.bin.click(told(restoring), [seen], bin_shown, **quiet)
    disk.ask.click(told(asking), None, [disk.question, disk.sure, asked], **quiet)
    disk.keep.click(lambda: ("", gr.update(visible=False)), None, [disk.question, disk.sure], **quiet)
    disk.empty.click(told(emptying), [seen, asked], bin_shown, **quiet)


def look(context: Context) -> dict[str, str]:
    """The parts of the page that live, as HTML by their names."""
    return {
        "devices": machine_views.devices(machine_desk.live(context)),
        "disk": machine_views.disk(machine_desk.storage(context)),
        "bin": machine_views.waste(machine_desk.waste(context), datetime.now(UTC)),
    }
