"""The pages before the door: log in, set a password. They stand alone, since a stranger gets no style sheet."""

from __future__ import annotations

import html

from storage.passwords import LONGEST, SHORTEST
from storage.users import LONGEST_NAME

_STYLE = """:root{color-scheme:light dark;--line:#cbd5e1;--dim:#475569;--accent:#0f766e;--paper:#fff;--bad:#b42318;
--ground:#f1f5f9}
@media(prefers-color-scheme:dark){:root{--line:#475569;--dim:#a3b1c4;--accent:#2dd4bf;--paper:#1e293b;--bad:#fda29b;
--ground:#0f172a}}
body{font:15px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:92vh;margin:0;
background:var(--ground)}
main{width:min(24rem,86vw);background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:1.6rem 1.8rem}
h1{display:flex;gap:.4rem;align-items:center;font-size:1.3rem;margin:0 0 1rem}h1 svg{color:var(--accent)}
label{display:block;font-weight:600}input{font:inherit;width:100%;box-sizing:border-box;padding:.5rem .6rem;
margin:.2rem 0 .9rem;border:1px solid var(--line);border-radius:6px;background:transparent;color:inherit}
button{font:inherit;font-weight:600;padding:.5rem 1.2rem;border:0;border-radius:6px;background:#0f766e;color:#fff}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
p{margin:.6rem 0}.bad{color:var(--bad);font-weight:600}small,summary{color:var(--dim)}
details{margin-top:1.2rem;border-top:1px solid var(--line);padding-top:.8rem}details form{margin-top:.7rem}"""

_MARK = (
    '<svg viewBox="0 0 16 16" width="22" height="22" aria-hidden="true"><path d="M8 0v7" stroke="currentColor" '
    'stroke-width="1.4"/><path d="M4.6 7h6.8L8 15.5z" fill="currentColor"/></svg>'
)


def login_page(problem: str, target: str, name: str = "", by_token: bool = False) -> str:
    """Name and password; beneath, the token of the console."""
    leads = f'<input type="hidden" name="next" value="{html.escape(target, quote=True)}">'
    # The keys go where something is missing.
    first, second, third = (
        " autofocus" if here else "" for here in (not (by_token or name), bool(name), by_token)
    )
    return _page(
        "Log in",
        problem,
        f"""<form method="post" action="/login">{leads}
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" maxlength="{2 * LONGEST_NAME}" required{first}
 value="{html.escape(name[: 2 * LONGEST_NAME], quote=True)}">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="{LONGEST}"
 required{second}>
<button>Log in</button></form>
<p><small>Forgotten? An admin can send a link that lets you set another.</small></p>
<details{" open" if by_token else ""}><summary>This machine is mine: log in with the console’s token</summary>
<form method="post" action="/login">{leads}
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required{third}>
<button>Log in</button>
<p><small>Plumb printed it on its console when it started.</small></p></form></details>""",
    )


def invitation_page(problem: str, key: str, name: str) -> str:
    """Set a password, twice the same."""
    return _page(
        "Set your password",
        problem,
        f"""<p>Welcome, <b><bdi>{html.escape(name)}</bdi></b>. Set the password with which you will log in.</p>
<form method="post" action="/invitation">
<input type="hidden" name="key" value="{html.escape(key, quote=True)}">
<input type="hidden" name="username" autocomplete="username" value="{html.escape(name, quote=True)}">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="new-password" minlength="{SHORTEST}"
 maxlength="{LONGEST}" required autofocus>
<label for="again">Once more</label>
<input id="again" name="again" type="password" autocomplete="new-password" required>
<button>Set it and log in</button></form>
<p><small>At least {SHORTEST} characters. Four words in a row do well.</small></p>""",
    )


def plain_page(title: str, problem: str) -> str:
    """A sentence, and the way to the form."""
    return _page(title, problem, '<p><a href="/login">Log in</a></p>')


def _page(title: str, problem: str, body: str) -> str:
    note = f'<p class="bad" role="alert">{html.escape(problem)}</p>' if problem else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)} · Plumb</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{_MARK}Plumb</h1>{note}{body}</main></body></html>"
    )
