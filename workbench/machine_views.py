"""The Machine page as HTML: devices, disk, bin, checks. Pure; every text from data is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from jobs.devices import Device, DeviceProcess
from storage.records import Job
from storage.units import in_words
from workbench.job_words import KIND_NAMES, kind_name, when
from workbench.machine_desk import Bin, Live, Report, Storage
from workbench.views import notice

PROCESSES = 10  # of a device that are named

# Parts of the data folder: their names here, and which colour. What is small is told as one.
_PARTS = (
    ("runs", "Runs", 0),
    ("models", "Models", 1),
    ("adapters", "Adapters", 2),
    ("images", "Images", 3),
    ("references", "Reference log-probabilities", 4),
    ("database", "Database", 5),
    ("bin", "Bin", 6),
)
_REST = ("Judges, logs and the rest", 7)
_SMALL = 0.002  # of the whole bar: narrower than a pixel

_STATES = {"ok": ("ok", "accepted"), "warning": ("warning", "proposed"), "wrong": ("wrong", "failed")}


# --- devices ---


def devices(found: Live) -> str:
    """A card for each slot; above them, that jobs get others."""
    cards = "".join(_device(device, found) for device in found.devices)
    other = f'<p class="pd-problem" role="alert">{escape(found.differs)}</p>' if found.differs else ""
    return f'{other}<div class="pd-devices">{cards}</div>'


def _device(device: Device, found: Live) -> str:
    holders = found.holders.get(device.slot, ())
    crowded = found.crowded.get(device.slot, "")
    name = f'<span class="pb-sub">{escape(device.name)}</span>' if device.name else ""
    parts = [f"<h3>{escape(device.slot)} {name}{_taken(holders, crowded, device)}</h3>"]
    if device.problem:
        parts.append(f'<p class="pd-problem" role="alert">{escape(device.problem)}</p>')
    else:
        parts.append(f'<dl class="pd-meters">{_memory(device)}{_load(device)}</dl>')
    if crowded:
        parts.append(
            f'<p class="pd-warning" role="status">Other people\'s processes fill {escape(crowded)}. Jobs wait '
            "until it is free, unless they name this device.</p>"
        )
    if not device.problem:
        parts.append(_processes(device, found))
    if device.note:
        parts.append(f'<p class="pb-sub">{escape(device.note)}</p>')
    return f'<section class="pd-device" aria-label="{escape(device.slot, quote=True)}">{"".join(parts)}</section>'


def _taken(holders: Sequence[Job], crowded: str, device: Device) -> str:
    if holders:
        return " ".join(
            f'<a class="pb-chip pd-holder" href="/jobs?job={job.id}">job {job.id}, {escape(str(job.status))}</a>'
            for job in holders
        )
    if device.problem:
        return '<span class="pb-chip failed">not known</span>'
    if crowded:
        return '<span class="pb-chip proposed">filled by others</span>'
    return '<span class="pb-chip accepted">free</span>'


def _memory(device: Device) -> str:
    if device.total is None or device.used is None:
        return "<dt>Memory</dt><dd></dd><dd class='pd-figure'>not told</dd>"
    used = min(device.used, device.total)
    own = min(used, sum(one.bytes or 0 for one in device.processes if one.job is not None))
    foreign = min(used - own, device.foreign_bytes)
    shares = [("pd-own", own, "Plumb's jobs"), ("pd-foreign", foreign, "others")]
    shares.append(("pd-used", used - own - foreign, "the rest in use"))
    free = device.free if device.free is not None else device.total - used
    return (
        f"<dt>Memory</dt><dd>{_bar(shares, device.total, 'Memory in use')}</dd>"
        f'<dd class="pd-figure">{in_words(used)} of {in_words(device.total)}, {in_words(free)} free</dd>'
    )


def _load(device: Device) -> str:
    rows = ""
    if device.load is not None:
        percent = round(100 * device.load)
        rows = (
            f"<dt>Load</dt><dd>{_bar([('pd-used', percent, 'busy')], 100, 'Load')}</dd>"
            f'<dd class="pd-figure">{percent} %</dd>'
        )
    if device.temperature is not None:
        rows += f'<dt>Temperature</dt><dd></dd><dd class="pd-figure">{device.temperature:.0f} °C</dd>'
    return rows


def _bar(shares: Sequence[tuple[str, float, str]], total: float, label: str) -> str:
    """Shares beside one another; (class, number, what it is)."""
    whole = max(1.0, float(total))
    used = sum(number for _, number, _ in shares)
    pieces = "".join(
        f'<span class="{kind}" style="width:{min(100.0, 100 * number / whole):.2f}%" '
        f'title="{escape(told, quote=True)}"></span>'
        for kind, number, told in shares
        if number > 0
    )
    return (
        f'<span class="pd-bar" role="meter" aria-label="{label}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{min(100.0, 100 * used / whole):.0f}">{pieces}</span>'
    )


def _processes(device: Device, found: Live) -> str:
    if not device.processes:
        words = "No process of any size." if not device.slot.startswith("cuda:") else "No process computes on it."
        return f'<p class="pb-sub pd-none">{words}</p>'
    rows = "".join(_process(one, found) for one in device.processes[:PROCESSES])
    rest = len(device.processes) - PROCESSES
    more = f'<p class="pb-sub">and {rest} more</p>' if rest > 0 else ""
    return (
        '<table class="pd-processes"><thead><tr><th scope="col">Whose</th><th scope="col">Process</th>'
        f'<th scope="col" class="pd-number">Memory</th></tr></thead><tbody>{rows}</tbody></table>{more}'
    )


def _process(one: DeviceProcess, found: Live) -> str:
    if one.job is not None:
        job = found.jobs.get(one.job)
        kind = f" {escape(kind_name(job))}" if job else ""
        whose = f'<span class="pd-dot pd-own"></span><a href="/jobs?job={one.job}">job {one.job}</a>{kind}'
    elif one.seen:
        whose = f'<span class="pd-dot pd-foreign"></span>{escape(one.user) or "another user"}'
    else:
        outside = "It runs outside of this container: nobody can tell in here whose it is"
        whose = f'<span class="pd-dot pd-used"></span><span title="{outside}">not seen from here</span>'
    size = in_words(one.bytes) if one.bytes is not None else "not told"
    return (
        f'<tr><td>{whose}</td><td>{escape(one.name)} <span class="pb-sub">{one.pid}</span></td>'
        f'<td class="pd-number">{size}</td></tr>'
    )


# --- the disk ---


def disk(found: Storage) -> str:
    """What the data folder takes of the disk, and of what."""
    usage = found.usage
    if usage is None:
        return notice(found.problem, "bad")
    why = f'<p class="pd-problem" role="alert">{escape(found.why)}</p>' if found.why else ""
    others = max(0, usage.total - usage.free - usage.used)
    whole = _bar(
        [("pd-own", usage.used, "this data folder"), ("pd-used", others, "other files")], usage.total, "The disk"
    )
    free = f"{in_words(usage.free)} of {in_words(usage.total)} free"
    floor = f"A job starts where {in_words(found.floor)} or more are free."
    of = f" of {in_words(usage.budget)}" if usage.budget is not None else ""
    parts = [(name, usage.used_by_parts.get(part, 0), colour) for part, name, colour in _PARTS]
    parts.append((_REST[0], usage.used - sum(size for _, size, _ in parts), _REST[1]))
    scale = max(usage.used, usage.budget or 0)
    shares = [(f"pd-part-{colour}", float(size), f"{name}: {in_words(size)}") for name, size, colour in parts]
    legend = "".join(
        f'<li><span class="pd-dot pd-part-{colour}"></span>{name}<b>{in_words(size)}</b></li>'
        for name, size, colour in sorted(parts, key=lambda part: -part[1])
        if size > 0
    )
    return (
        f'{why}<dl class="pd-disk"><dt>{free}</dt><dd>{whole}<span class="pb-sub">{floor}</span></dd>'
        f"<dt>Data folder: {in_words(usage.used)}{of}</dt>"
        f"<dd>{_bar([share for share in shares if share[1] > _SMALL * scale], scale, 'The data folder')}</dd></dl>"
        f'<ul class="pd-legend">{legend}</ul>{_largest(found)}'
    )


def _largest(found: Storage) -> str:
    if not found.largest:
        return ""
    lines = "".join(f"<li>{_run(job_id, job)}<b>{in_words(size)}</b></li>" for job_id, job, size in found.largest)
    return f'<h3 class="pd-sub">Largest runs</h3><ul class="pd-legend">{lines}</ul>'


def _run(job_id: int, job: Job | None) -> str:
    if job is None:
        return f"folder {job_id}"
    return f'<a href="/jobs?job={job_id}">job {job_id}</a> {escape(kind_name(job))}'


def waste(found: Bin, now: datetime) -> str:
    """The bin, each run with a button that restores it."""
    days = f"{found.days} day{'' if found.days == 1 else 's'}"
    if not found.runs:
        return f'<p class="pb-hint">The bin is empty. A deleted run can be restored for {days}.</p>'
    rows = "".join(_binned(job, size, now) for job, size in found.runs)
    return (
        f'<p class="pb-hint">Each can be restored for {days}; then it goes for good.</p>'
        f'<div class="pd-bin"><table aria-label="Deleted runs"><tbody>{rows}</tbody></table></div>'
    )


def _binned(job: Job, size: int, now: datetime) -> str:
    kind = escape(KIND_NAMES.get(job.kind, job.kind))
    by = f" by {escape(job.deleted_by)}" if job.deleted_by else ""
    ago = when(job.deleted_at, now) if job.deleted_at else ""
    return (
        f'<tr><td><a href="/jobs?job={job.id}">#{job.id} {kind}</a>'
        f'<span class="pb-sub pd-when">deleted {ago}{by}</span></td>'
        f'<td class="pd-number">{in_words(size)}</td><td><button type="button" class="pb-button small" '
        f'data-restore="{job.id}" aria-label="Restore the run of job {job.id}">Restore</button></td></tr>'
    )


def emptying(found: Bin) -> str:
    """What is asked before the bin is emptied."""
    size = in_words(sum(size for _, size in found.runs))
    many = "1 run" if len(found.runs) == 1 else f"{len(found.runs)} runs"
    text = f"Remove {many} ({size}) for good? What they made, answers, scores and adapters, stays."
    return notice(text) if found.runs else notice("The bin is empty.")


def restored(job: Job) -> str:
    """What is told after a run was taken out of the bin."""
    return (
        f'<div class="pb-notice good" role="status">The run of <a href="/jobs?job={job.id}">job {job.id}</a> is '
        "back in the list.</div>"
    )


# --- checks and backups ---


def checks(report: Report | None, now: datetime) -> str:
    """The doctor's table; what is wrong stands first."""
    if report is None:
        return (
            '<p class="pb-hint">Nobody has checked since the app began. It looks at packages, driver, devices, '
            "disk, database and supervisor, changes nothing, and takes some seconds.</p>"
        )
    order = ("wrong", "warning", "ok")
    rows = ""
    for check in sorted(report.checks, key=lambda one: order.index(one.state)):
        word, kind = _STATES[check.state]
        remedy = f'<span class="pd-remedy">{escape(check.remedy)}</span>' if check.remedy else ""
        rows += (
            f'<tr class="pd-is-{check.state}"><td><span class="pb-chip {kind}">{word}</span></td>'
            f'<th scope="row">{escape(check.name)}</th><td>{escape(check.text)}{remedy}</td></tr>'
        )
    return (
        f'<p class="pb-hint">{_verdict(report)} Checked {when(report.at.isoformat(), now)}, in '
        f"{report.seconds:.1f} s.</p>"
        f'<table class="pd-checks" aria-label="Checks"><tbody>{rows}</tbody></table>'
    )


def _verdict(report: Report) -> str:
    counts = {state: sum(check.state == state for check in report.checks) for state in _STATES}
    told = []
    if counts["wrong"]:
        told.append(f"<b class='pd-bad'>{counts['wrong']} wrong</b>")
    if counts["warning"]:
        told.append(f"<b class='pb-warn'>{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}</b>")
    return f"{', '.join(told)}." if told else "Nothing is wrong."


def backups(commands: Sequence[str]) -> str:
    """The commands about backups."""
    lines = escape("\n".join(commands))
    return (
        '<p class="pb-hint">While jobs run: database, images, adapters and run folders in one file. It is '
        "restored into an empty folder.</p>"
        f'<pre class="pd-command" tabindex="0">{lines}</pre>'
    )
