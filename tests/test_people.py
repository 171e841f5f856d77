"""People: names, passwords, invitations, sessions, the page and the commands. Guessing: test_guessing.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database
from typer.testing import CliRunner

from at_the_door import OTHER, PASSWORD, Place
from factories import World, open_world, settings_for
from jobs.settings import local_user
from storage import invitations, users
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.passwords import hash_password, is_password
from storage.user_commands import app as commands
from workbench import door as doors
from workbench import people_views, sessions
from workbench.context import Context, Person
from workbench.door import Door
from workbench.ui import build_api

pytestmark = pytest.mark.usefixtures("cheap_hashes")

STRANGE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "عائشة",
    "👩‍🔬 Ada",
    "O'Brien & Söhne; DROP TABLE users",
    "李" * 64,
]


# names and passwords --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGE)
def test_names_may_hold_anything_that_can_be_seen(place: Place, name: str) -> None:
    users.add_user(place.world.db, name, "annotator", PASSWORD)
    visitor = place.visitor()
    assert place.log_in(name, PASSWORD, visitor) == 303
    assert visitor.get("/api/me").json()["name"] == name
    page = people_views.page(Person("root", "admin"), True, users.list_users(place.world.db))
    assert "<script>" not in page
    assert "<img" not in page


@pytest.mark.parametrize(
    "name", ["", "   ", "a" * 65, "a\u202eb", "a\u2066b", "a\nb", "a\x00b", "a\u200fb", "\ud800"]
)
def test_names_that_nobody_could_read_are_refused(world: World, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        users.add_user(world.db, name, "annotator", PASSWORD)
    assert users.list_users(world.db) == []


@given(st.text(max_size=80))
def test_a_clean_name_is_clean(text: str) -> None:
    try:
        name = users.clean_name(text)
    except UserError:
        return
    assert users.clean_name(name) == name
    assert 0 < len(name) <= users.LONGEST_NAME


def test_names_that_differ_by_capitals_alone_are_one(world: World) -> None:
    users.add_user(world.db, "Ada", "annotator", PASSWORD)
    with pytest.raises(Conflict, match="'Ada' is here already"):
        users.add_user(world.db, "ada", "admin", PASSWORD)
    with pytest.raises(Conflict, match="taken"):
        users.add_user(world.db, "Ada", "admin", OTHER)
    assert users.get_user(world.db, "Ada").role == "annotator"


@pytest.mark.parametrize("password", ["", "short", "x" * 1001, "Ada Lovelace", "aaaaaaaaaaaaaaa"])
def test_passwords_that_are_guessed_first_are_refused_unquoted(world: World, password: str) -> None:
    with pytest.raises(UserError, match="password") as refused:
        users.add_user(world.db, "ada lovelace", "annotator", password)
    assert not password or password not in str(refused.value)


def test_passwords_are_hashed_and_appear_nowhere(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    assert is_password(hash_password("Ａｄａ Lovelace!"), "Ada Lovelace!"), "however the keyboard writes it"
    assert not is_password(None, PASSWORD)
    assert not is_password("no hash", PASSWORD)
    (row,) = place.world.db.query("SELECT * FROM users")
    assert row["password"].startswith("$argon2id$")
    assert PASSWORD not in str(row)
    assert "argon2" not in str(users.get_user(place.world.db, "ada"))


def test_a_hash_of_older_parameters_is_renewed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add_user(world.db, "ada", "annotator", PASSWORD)
    (before,) = world.db.query("SELECT password, era FROM users")
    from argon2 import PasswordHasher

    hasher = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)
    monkeypatch.setattr("storage.passwords._hasher", lambda: hasher)
    assert users.log_in(world.db, "ada", PASSWORD)
    (after,) = world.db.query("SELECT password, era FROM users")
    assert "t=2" in after["password"]
    assert after["era"] == before["era"], "nobody is logged out by it"


def test_an_unknown_name_costs_what_a_known_one_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in hashes, not in seconds."""
    users.add_user(world.db, "ada", "annotator", PASSWORD)
    users.add_user(world.db, "eve", "annotator")
    checked: list[str] = []
    from storage import passwords

    real = passwords._hasher()

    class Counting:
        def verify(self, encoded: str, password: str) -> bool:
            checked.append(encoded)
            return bool(real.verify(encoded, password))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(passwords, "_hasher", Counting)
    for name in ("ada", "nobody", "eve", "a\x00b"):
        checked.clear()
        assert users.log_in(world.db, name, "wrong wrong wrong") is None
        assert len(checked) == 1, name
        assert checked[0].startswith("$argon2id$"), "no hash is told from a wrong one at a glance"


# log in, log out ------------------------------------------------------------------------------------------------


def test_name_and_password_let_in_and_say_no_more_when_wrong(place: Place) -> None:
    users.add_user(place.world.db, "ada", "researcher", PASSWORD)
    visitor = place.visitor()
    wrong = visitor.post("/login", data={"name": "ada", "password": OTHER})
    unknown = visitor.post("/login", data={"name": "bob", "password": OTHER})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.replace("ada", "bob") == unknown.text
    assert OTHER not in wrong.text
    answer = visitor.post("/login", data={"name": " ada ", "password": PASSWORD, "next": "/pairs?x=1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/pairs?x=1")
    cookies = answer.headers.get_list("set-cookie")
    assert all("httponly" in one.lower() and "samesite=lax" in one.lower() for one in cookies)
    assert visitor.get("/api/me").json() == visitor.get("/api/me").json()
    assert visitor.get("/api/me").json()["role"] == "researcher"


def test_the_cookie_is_secure_where_the_address_is(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = TestClient(place.app, base_url="https://plumb.example", follow_redirects=False)
    answer = visitor.post("/login", data={"name": "ada", "password": PASSWORD})
    assert all("; secure" in one.lower() for one in answer.headers.get_list("set-cookie"))


def test_logging_out_ends_the_session_and_every_copy_of_it(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor, beside = place.visitor("ada"), place.visitor("ada")
    copy = visitor.cookies[place.door.cookie]
    assert visitor.post("/logout").status_code == 303
    assert visitor.get("/api/me").status_code == 401
    assert beside.get("/api/me").status_code == 200, "another browser stays"
    for keeper in (place.door, Door(place.world.settings.model_copy(update={"host": "0.0.0.0"}))):
        app = build_api(Context(place.world.settings), keeper)
        thief = TestClient(app, base_url="http://plumb.example", headers={"cookie": f"{keeper.cookie}={copy}"})
        assert thief.get("/api/me").status_code == 401, "also after a restart"


def test_another_sites_form_logs_nobody_out(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = place.visitor("ada")
    assert visitor.post("/logout", headers={"origin": "https://evil.example"}).status_code == 403
    assert visitor.get("/api/me").status_code == 200


def come_back(db: Database) -> None:
    users.remove_user(db, "ada")
    users.add_user(db, "ada", "annotator", PASSWORD, again=True)


@pytest.mark.parametrize(
    "act",
    [
        lambda db: users.set_password(db, "ada", OTHER),
        lambda db: users.end_sessions(db, "ada"),
        lambda db: users.remove_user(db, "ada"),
        come_back,
        lambda db: invitations.invite(db, b"k", "ada"),
    ],
)
def test_what_raises_the_era_ends_open_sessions(place: Place, act: Any) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    users.add_user(place.world.db, "bob", "annotator", PASSWORD)
    ada, bob = place.visitor("ada"), place.visitor("bob")
    assert ada.get("/api/me").status_code == 200
    act(place.world.db)
    assert ada.get("/api/me").status_code == 401
    assert bob.get("/api/me").status_code == 200


def test_a_session_ends_when_idle_and_not_while_it_is_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = place.visitor("ada")
    session = place.door.sessions.read(visitor.cookies[place.door.cookie])
    assert session is not None
    now = [time.time()]
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now[0])
    monkeypatch.setattr("workbench.sessions.time.time", lambda: now[0])
    assert "set-cookie" not in visitor.get("/api/me").headers
    for _ in range(3):  # a little less than idle each time, more than it together
        now[0] += sessions.IDLE_SECONDS - 60
        answer = visitor.get("/api/me")
        assert answer.status_code == 200
        assert "set-cookie" in answer.headers
        assert "set-cookie" not in visitor.get("/api/me").headers, "not at each request"
    now[0] += sessions.IDLE_SECONDS + 60
    assert visitor.get("/api/me").status_code == 401


def test_a_session_ends_by_age_however_it_is_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = place.visitor("ada")
    now = [time.time()]
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now[0])
    monkeypatch.setattr("workbench.sessions.time.time", lambda: now[0])
    days = 0
    while visitor.get("/api/me").status_code == 200:
        now[0] += 86400
        days += 1
        assert days < 30
    assert days == sessions.SESSION_SECONDS / 86400


def test_identify_hashes_nothing_and_reads_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = place.visitor("ada")
    visitor.get("/api/me")
    monkeypatch.setattr("storage.passwords._hasher", lambda: pytest.fail("argon2 at a request"))
    assert place.door._database is not None
    statements: list[str] = []
    place.door._database.conn.set_trace_callback(statements.append)
    assert visitor.get("/images/" + "0" * 64).status_code == 404
    asked = place.door.identify
    statements.clear()
    from starlette.requests import HTTPConnection

    cookie = f"{place.door.cookie}={visitor.cookies[place.door.cookie]}".encode()
    assert asked(HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})) == "ada"
    assert len(statements) == 1
    plan = list(place.world.db.query("EXPLAIN QUERY PLAN " + statements[0]))
    assert "SEARCH" in plan[0]["detail"], plan


def test_the_door_looks_again_when_its_connection_breaks(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    visitor = place.visitor("ada")
    assert visitor.get("/api/me").status_code == 200
    assert place.door._database is not None
    place.door._database.conn.close()
    assert visitor.get("/api/me").status_code == 200


# the machine's owner --------------------------------------------------------------------------------------------


def test_the_consoles_token_lets_in_as_admin(place: Place) -> None:
    visitor = place.visitor()
    assert visitor.post("/login", data={"token": place.door.token}).status_code == 303
    assert visitor.get("/api/me").json() == {"name": local_user(), "role": "admin", "login": True, "denied": {}}
    users.set_role(place.world.db, local_user(), "annotator")
    assert visitor.get("/api/me").json()["role"] == "admin", "whoever has the machine has the data"


def test_a_person_of_the_owners_name_gets_no_admin_by_the_owners_login(place: Place) -> None:
    users.add_user(place.world.db, local_user(), "annotator", PASSWORD)
    owner, person = place.visitor(), place.visitor()
    assert owner.post("/login", data={"token": place.door.token}).status_code == 303
    assert owner.get("/api/me").json()["role"] == "admin"
    assert place.log_in(local_user(), PASSWORD, person) == 303
    assert person.get("/api/me").json()["role"] == "annotator"


def test_a_login_can_be_asked_for_on_loopback(world: World) -> None:
    settings = settings_for(world.folder.root, login=True)
    keeper = Door(settings)
    visitor = TestClient(build_api(Context(settings), keeper), base_url="https://plumb.example")
    assert visitor.get("/api/me").status_code == 401
    visitor.cookies.set(keeper.cookie, keeper.admit(keeper.token, "x") or "")
    assert visitor.get("/api/me").json()["role"] == "admin"


# invitations ----------------------------------------------------------------------------------------------------


def test_an_invitation_sets_a_password_once(place: Place) -> None:
    db, key = place.world.db, place.world.folder.key()
    users.add_user(db, "<b>ada</b>", "researcher")
    path = invitations.invite(db, key, "<b>ada</b>")
    visitor = place.visitor()
    for _ in range(2):  # whoever looks at it in advance, as chat programs do, uses nothing up
        page = visitor.get(path)
        assert page.status_code == 200
        assert "&lt;b&gt;ada" in page.text
        assert "<b>ada</b>" not in page.text
    text = path.partition("key=")[2]
    assert visitor.post("/invitation", data={"key": text, "password": PASSWORD, "again": OTHER}).status_code == 400
    assert (
        visitor.post("/invitation", data={"key": text, "password": "short", "again": "short"}).status_code == 400
    )
    body = {"key": text, "password": PASSWORD, "again": PASSWORD}
    answer = visitor.post("/invitation", data=body)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert visitor.get("/api/me").json()["role"] == "researcher"
    again = place.visitor().post("/invitation", data=body | {"password": OTHER, "again": OTHER})
    assert again.status_code == 401
    assert "was used" in again.text
    assert place.log_in("<b>ada</b>", PASSWORD) == 303


def test_invitations_that_open_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    db, key = place.world.db, place.world.folder.key()
    users.add_user(db, "ada", "annotator")
    first = invitations.invite(db, key, "ada").partition("key=")[2]
    second = invitations.invite(db, key, "ada").partition("key=")[2]
    session = place.door.session_for("ada")
    for text in (first, second[:-2], "", "a.b.c", session, place.door.sessions.device("ada")):
        with pytest.raises(UserError, match="Ask an admin"):
            invitations.accept(db, key, text, PASSWORD)
    with pytest.raises(UserError):
        invitations.accept(db, b"another folder's", second, PASSWORD)
    users.remove_user(db, "ada")
    with pytest.raises(UserError):
        invitations.accept(db, key, second, PASSWORD)
    users.add_user(db, "ada", "annotator", again=True)
    third = invitations.invite(db, key, "ada").partition("key=")[2]
    monkeypatch.setattr(invitations, "INVITATION_SECONDS", -1)
    with pytest.raises(UserError):
        invitations.accept(db, key, third, PASSWORD)


def test_of_two_who_use_one_invitation_one_gets_through(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    db, key = place.world.db, place.world.folder.key()
    users.add_user(db, "ada", "annotator")
    text = invitations.invite(db, key, "ada").partition("key=")[2]
    real = hash_password

    def slow(password: str) -> str:
        monkeypatch.setattr("storage.users.hash_password", real)
        invitations.accept(db, key, text, OTHER)  # the other, while this one is hashed
        return real(password)

    monkeypatch.setattr("storage.users.hash_password", slow)
    with pytest.raises(Conflict):
        invitations.accept(db, key, text, PASSWORD)
    assert users.log_in(db, "ada", OTHER)
    assert users.log_in(db, "ada", PASSWORD) is None


# the page -------------------------------------------------------------------------------------------------------


def test_an_admin_invites_promotes_logs_out_and_removes(place: Place) -> None:
    users.add_user(place.world.db, "root", "admin", PASSWORD)
    admin = place.visitor("root")
    answer = admin.post("/api/people/invite", json={"name": "ada", "role": "annotator"}).json()
    assert answer["html"].count("http://plumb.example/invitation?key=") == 1
    assert "ada may come in as annotator" in answer["said"]
    ada = place.visitor("ada")
    assert admin.post("/api/people/role", json={"name": "ada", "role": "researcher"}).status_code == 200
    assert ada.get("/api/me").json()["role"] == "researcher"
    assert admin.post("/api/people/logout", json={"name": "ada"}).status_code == 200
    assert ada.get("/api/me").status_code == 401
    ada = place.visitor("ada")
    assert "invitation?key=" in admin.post("/api/people/link", json={"name": "ada"}).json()["html"]
    assert ada.get("/api/me").status_code == 401
    answer = admin.post("/api/people/remove", json={"name": "ada"}).json()
    assert "Take back" in answer["html"]
    refused = admin.post("/api/people/invite", json={"name": "ada", "role": "annotator"})
    assert refused.status_code == 409
    assert "was removed on" in refused.json()["error"]
    back = admin.post("/api/people/invite", json={"name": "ada", "role": "annotator", "again": "yes"})
    assert back.status_code == 200
    assert admin.post("/api/people/logout", json={"name": "root"}).json() == {
        "said": "root is logged out everywhere.",
        "html": "",
        "gone": True,
    }


def test_an_admin_does_not_shut_the_door_behind_themselves(place: Place) -> None:
    users.add_user(place.world.db, "root", "admin", PASSWORD)
    admin = place.visitor("root")
    for path, body in (("role", {"name": "root", "role": "annotator"}), ("remove", {"name": "root"})):
        assert admin.post(f"/api/people/{path}", json=body).status_code == 409
    assert admin.post("/api/people/role", json={"name": "ghost", "role": "admin"}).status_code == 404
    assert admin.post("/api/people/invite", json={"name": "x", "role": "king"}).status_code == 400
    assert admin.get("/api/me").json()["role"] == "admin"


def test_ones_own_password_needs_the_old_one_and_ends_other_sessions(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    here, elsewhere = place.visitor("ada"), place.visitor("ada")
    refused = here.post("/api/me/password", json={"old": OTHER, "new": OTHER})
    assert refused.status_code == 400
    assert OTHER not in refused.text
    assert here.post("/api/me/password", json={"old": PASSWORD, "new": "short"}).status_code == 400
    assert elsewhere.get("/api/me").status_code == 200
    assert here.post("/api/me/password", json={"old": PASSWORD, "new": OTHER}).status_code == 200
    assert here.get("/api/me").status_code == 200
    assert elsewhere.get("/api/me").status_code == 401
    assert (place.log_in("ada", PASSWORD), place.log_in("ada", OTHER)) == (401, 303)


def test_a_stolen_session_cannot_guess_the_password_for_ever(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    thief = place.visitor("ada", client="10.0.0.8")
    answers = [thief.post("/api/me/password", json={"old": f"guess {n} of many", "new": OTHER}) for n in range(30)]
    assert [answer.status_code for answer in answers].count(400) == doors.ATTEMPTS
    assert answers[-1].status_code == 409
    assert thief.post("/api/me/password", json={"old": PASSWORD, "new": OTHER}).status_code == 409


def test_on_ones_own_machine_nobody_logs_in(world: World) -> None:
    app = build_api(Context(world.settings), Door(world.settings))
    visitor = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    for path in ("/login", "/invitation?key=x"):
        assert visitor.get(path).headers["location"] == "/"
    assert visitor.post("/api/me/password", json={"new": PASSWORD}).status_code == 400
    link = visitor.post("/api/people/invite", json={"name": "ada", "role": "annotator"}).json()["html"]
    assert "http://127.0.0.1:7860/invitation?key=" in link
    page = people_views.page(Person("me", "admin"), False, [])
    assert "without a login" in page
    assert "Change my password" not in page


def test_others_see_themselves_alone(world: World) -> None:
    users.add_user(world.db, "secret colleague", "admin")
    page = people_views.page(Person("ada", "annotator"), True, users.list_users(world.db))
    assert "secret colleague" not in page
    assert "Invite" not in page
    assert "Change my password" in page


# removal keeps the work -----------------------------------------------------------------------------------------


def test_a_removed_persons_work_stays_and_their_leases_go(world: World) -> None:
    users.add_user(world.db, "ada", "annotator", PASSWORD)
    sample = world.sample()
    world.db.conn.execute("INSERT INTO leases VALUES (?, 'ada', 9e12)", [sample])
    world.db.conn.execute(
        "INSERT INTO notes (sample_id, user, text, created_at) VALUES (?, 'ada', 'n', '')", [sample]
    )
    users.remove_user(world.db, "ada")
    assert world.db["leases"].count == 0
    assert world.db["notes"].count == 1
    assert users.log_in(world.db, "ada", PASSWORD) is None
    gone = users.find_user(world.db, "ada")
    assert gone is not None
    assert gone.era == 2, "the machine's owner, too, is logged out when their name is removed"
    with pytest.raises(NotFound):
        users.set_role(world.db, "ada", "admin")
    assert users.ensure_user(world.db, "ada") == "ada", "a job of theirs may still write"
    assert users.list_users(world.db) == []


# the commands ---------------------------------------------------------------------------------------------------


def run(data: Path, *words: str, given: str | None = None) -> Any:
    return CliRunner().invoke(commands, [*words, "--data", str(data)], input=given)


def test_the_commands(tmp_path: Path) -> None:
    assert (
        "ada may come in as admin"
        in run(tmp_path, "add", "ada", "--role", "admin", "--password-stdin", given=PASSWORD + "\n").output
    )
    added = run(tmp_path, "add", "bob", "--invite", "--address", "https://plumb.example/")
    assert "https://plumb.example/invitation?key=" in added.output
    assert run(tmp_path, "role", "bob", "researcher").output == "bob is researcher now.\n"
    listed = run(tmp_path, "list").output.splitlines()
    assert [line.split()[0] for line in listed] == ["admin", "researcher"]
    assert "bob has a new password" in run(tmp_path, "password", "bob", "--password-stdin", given=OTHER).output
    assert "removed and logged out" in run(tmp_path, "remove", "bob").output
    assert "bob" not in run(tmp_path, "list").output
    assert '"deleted_at": "2' in run(tmp_path, "list", "--json", "--removed").output
    world = open_world(tmp_path)
    assert users.log_in(world.db, "ada", PASSWORD)
    assert users.log_in(world.db, "bob", OTHER) is None
    world.db.close()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "ada", "--role", "king", "--invite"), "role = 'king'"),
        (("add", "ada"), "there is no terminal"),
        (("add", "ada", "--password-stdin"), "10 to 1000 characters"),
        (("add", " ", "--invite"), "name: give 1 to 64"),
        (("role", "ghost", "admin"), "nobody of this name"),
        (("remove", "ghost"), "nobody of this name"),
        (("password", "ghost", "--invite"), "nobody of this name"),
    ],
)
def test_the_commands_refusals(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = run(tmp_path, *words, given="short\n")
    assert isinstance(result.exception, PlumbError)
    assert told in str(result.exception)


def test_no_command_takes_a_password_as_an_argument(tmp_path: Path) -> None:
    assert run(tmp_path, "add", "ada", "--password", PASSWORD).exit_code == 2
    assert run(tmp_path, "add", "ada", PASSWORD).exit_code == 2
