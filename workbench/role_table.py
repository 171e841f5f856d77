"""The least role of each handler and route, by module and function; workbench/roles.py reads it.

Reading is for everybody. Annotators judge by hand: score, choose, flag, note, write answers, chat and vote.
Researchers start what costs time or money and change what many samples share. Admins look after people, the
machine, and what cannot be got back.
"""

from __future__ import annotations

from storage.users import Role

_ANNOTATOR = {
    "ui": "on_load health",
    "login": "login_link login_form invitation_link invitation_form logout",
    "roles": "me",
    "images": "image thumbnail seen",
    "chat_export": "export",
    "job_notices": "ended",
    "job_downloads": "log folder",
    "pages.datasets": "opening",
    "evaluation_api": "download",
    "pages.evaluation": "looking",
    "api": (
        "post_score post_pair post_pair_change post_flag post_note post_skip post_answer post_suggestion "
        "post_undo post_redo get_history get_stamp"
    ),
    "find_api": "post_view post_view_gone post_lease",
    "people_api": "post_password",
    "pages.people": "opening",
    "pages.samples": "on_refresh on_restore",
    "pages.data": "opening ticking",
    "pages.judges": "opening opening_again choosing _remote _wire.<lambda>",
    "judge_desk": "show_today",
    "pages.agreement": "on_show",
    "pages.pairs": "on_list show_datasets on_judges on_preview on_whose show_contents",
    "pair_desk": "show_finder",
    "pages.jobs": "opening ticking choosing fresh cloning sliding estimating choosing_judge offer",
    "job_wiring": "ask unasked choosing_attempt searching searching_on",
    "training_wiring": "choosing_method choosing_model fill counting paper wire_training.<lambda> checking",
    "pages.models": "show asking _wire.<lambda>",
    "vote_panel": "standings_panel.<lambda> cast put pairing look",
    "chat_wiring": (
        "opening choosing fresh counting asking retrying acting deleting searching recasting stopping "
    ),
    "pages.contests": (
        "choosing going_on going_back undoing resuming asking_standings showing_standings ticking voting opening "
        "fresh offered sourcing checking"
    ),
    "pages.machine": "opening ticking asking _wire.<lambda>",
}

_RESEARCHER = {
    "dataset_downloads": "export",
    "api": "post_discard post_judge post_checklist",
    "find_api": "post_bulk post_guidelines",
    "pair_api": "post_pairs",
    "evaluation_api": "post_hide post_show",
    "demo_loader": "load_demo",
    "pages.data": "receiving fetching choosing beginning cancelling removing",
    "pages.judges": "saving_table editing saving saving_desk",
    "pages.pairs": "on_add on_accept on_freeze",
    "pages.jobs": "begin",
    "job_wiring": "stopping do again holding",
    "training_wiring": "begin trying",
    "pages.models": "merging pushing renaming",
    "pages.contests": "starting",
    "pages.machine": "checking",
}

_ADMIN = {
    "people_api": "post_invite post_link post_role post_remove post_log_out",
    "job_wiring": "deleting undoing",
    "pages.models": "deleting",
    "pages.contests": "deleting",
    "pages.machine": "budgeting restoring emptying",
}


def _flat() -> dict[str, Role]:
    table: dict[str, Role] = {}
    lists: tuple[tuple[Role, dict[str, str]], ...] = (
        ("annotator", _ANNOTATOR),
        ("researcher", _RESEARCHER),
        ("admin", _ADMIN),
    )
    for role, modules in lists:
        for module, names in modules.items():
            for name in names.split():
                assert f"{module}.{name}" not in table, f"{module}.{name} stands in two lists"
                table[f"{module}.{name}"] = role
    return table


LEAST: dict[str, Role] = _flat()

# Buttons of our own scripts, which call the API: who may use them.
SELECTORS: dict[str, Role] = {
    "[data-bulk]": "researcher",
    "[data-judge]": "researcher",
    '[data-mark="discard"]': "researcher",
    "[data-guide=edit]": "researcher",
    "[data-edit-checklist]": "researcher",
    "[data-hide-evaluation]": "researcher",
    "[data-show-evaluation]": "researcher",
}
