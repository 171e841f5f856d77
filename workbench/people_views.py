"""HTML of the People page: oneself, and for admins everybody. Every name goes through `escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from storage.passwords import LONGEST, SHORTEST
from storage.users import LONGEST_NAME, ROLES, User, may
from workbench.door import Person

MAY = {
    "annotator": "reads everything; scores, chooses pairs, flags, notes, writes answers, chats and votes",
    "researcher": "also starts generation, judging and training, acts on many samples at once, discards, imports, "
    "freezes and exports, writes guidelines, holds contests",
    "admin": "also looks after people and the machine, deletes and restores",
}


def page(person: Person, login: bool, everybody: Sequence[User], said: str = "", link: str = "") -> str:
    """The whole page.

    Args:
        login: people log in here; else this is one person's own machine.
        everybody: those whom an admin looks after, removed ones last; not used for others.
        said: what was just done.
        link: an invitation's whole address, shown this once.
    """
    told = f'<p class="pb-notice good" role="status">{escape(said)}</p>' if said else ""
    if link:
        told += (
            '<p class="pb-notice"><label>Send this link; it lets the person set a password, once, within seven '
            'days. It is not shown again.<input class="pp-link" readonly '
            f'value="{escape(link, quote=True)}"></label></p>'
        )
    admin = f"{_everybody(person, everybody)}{_newcomer()}" if person.role == "admin" else ""
    return f'<div class="pp-page">{told}{_self(person, login)}{admin}{_roles(person)}</div>'


def _self(person: Person, login: bool) -> str:
    name = f"<b><bdi>{escape(person.name)}</bdi></b>"
    if not login:
        return (
            f'<section class="pb-panel"><h2>You</h2><p>You are {name}, as this machine knows you: admin, without '
            "a login, because Plumb answers to this machine alone. People log in once it listens on another "
            "address: <code>python app.py --host 0.0.0.0</code>. You can invite them now.</p></section>"
        )
    return f"""<section class="pb-panel"><h2>You</h2><p>You are {name}, {escape(person.role)}.</p>
<form data-people="/api/me/password" class="pp-form">
<input type="hidden" name="username" autocomplete="username" value="{escape(person.name, quote=True)}">
<label>Password until now<input name="old" type="password" autocomplete="current-password"
 maxlength="{LONGEST}"></label>
<label>New password<input name="new" type="password" autocomplete="new-password" required minlength="{SHORTEST}"
 maxlength="{LONGEST}"></label>
<button type="submit" class="pb-button">Change my password</button></form>
<p class="pb-sub">At least {SHORTEST} characters. Your other browsers are logged out.</p></section>"""


def _everybody(person: Person, everybody: Sequence[User]) -> str:
    lines = "".join(_line(person, user) for user in everybody)
    return (
        '<section class="pb-panel"><h2>People</h2><table class="pp-people"><thead><tr><th scope="col">Name</th>'
        '<th scope="col">Role</th><th scope="col">Way in</th><th scope="col">Since</th>'
        f'<th scope="col"><span class="pp-hidden">Acts</span></th></tr></thead>'
        f"<tbody>{lines}</tbody></table></section>"
    )


def _line(person: Person, user: User) -> str:
    name = escape(user.name, quote=True)
    mine = user.name == person.name
    if user.deleted_at is not None:
        role, way = escape(user.role), f"removed on {escape(user.deleted_at[:10])}"
        acts = (
            f'<form data-people="/api/people/invite"><input type="hidden" name="name" value="{name}">'
            f'<input type="hidden" name="role" value="{escape(user.role)}">'
            '<input type="hidden" name="again" value="yes">'
            '<button type="submit" class="pb-button small">Take back</button></form>'
        )
    else:
        options = "".join(f"<option{' selected' if one == user.role else ''}>{one}</option>" for one in ROLES)
        role = (
            f'<form data-people="/api/people/role" data-at-once>'
            f'<input type="hidden" name="name" value="{name}">'
            f'<select name="role" aria-label="Role of {name}"{" disabled" if mine else ""}>'
            f"{options}</select></form>"
        )
        way = "password" if user.has_password else "no password yet"
        acts = _act("link", "New link" if user.has_password else "Invite", name, "")
        acts += _act("logout", "Log out everywhere", name, "")
        if not mine:
            acts += _act("remove", "Remove", name, f"Remove {user.name}? What they did stays.")
    you = ' <span class="pb-sub">you</span>' if mine else ""
    gone = ' class="pp-gone"' if user.deleted_at else ""
    return (
        f'<tr{gone}><th scope="row"><bdi>{escape(user.name)}</bdi>{you}</th><td>{role}</td><td>{way}</td>'
        f"<td>{escape(user.created_at[:10])}</td><td>{acts}</td></tr>"
    )


def _act(verb: str, title: str, name: str, question: str) -> str:
    asked = f' data-ask="{escape(question, quote=True)}"' if question else ""
    return (
        f'<form data-people="/api/people/{verb}"{asked}><input type="hidden" name="name" value="{name}">'
        f'<button type="submit" class="pb-button small" aria-label="{title}: {name}">{title}</button></form>'
    )


def _newcomer() -> str:
    options = "".join(f"<option>{one}</option>" for one in ROLES)
    return f"""<section class="pb-panel"><h2>Invite</h2>
<form data-people="/api/people/invite" class="pp-form"><label>Name<input name="name" required
 maxlength="{LONGEST_NAME}" autocomplete="off"></label><label>Role<select name="role">{options}</select></label>
<button type="submit" class="pb-button primary">Invite</button></form>
<p class="pb-sub">The name stands beside what the person does. You get a link to send.</p></section>"""


def _roles(person: Person) -> str:
    items = "".join(
        f"<dt>{role}{' ✓' if may(person.role, role) else ''}</dt><dd>{escape(MAY[role])}</dd>" for role in ROLES
    )
    who = "" if person.role == "admin" else " An admin can give you another role; it holds at once."
    return (
        f'<section class="pb-panel"><h2>Roles</h2><dl class="pp-roles">{items}</dl>'
        f'<p class="pb-sub">Each may do what those before it may.{who}</p></section>'
    )
