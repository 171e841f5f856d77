"""Roles: each handler and route says what it needs, and asks for it whichever way the call comes."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute, Mount

from factories import World, open_world, settings_for
from storage.errors import Forbidden
from storage.users import ROLES, Role, add_user, may, remove_user, set_role
from workbench import login, role_table, roles
from workbench.context import Context
from workbench.door import PUBLIC, Door
from workbench.ui import build_api, build_pages, build_ui

PASSWORD = "four words in a row"


@dataclass
class Team:
    """The app as a team uses it: one person a role."""

    app: Any
    pages: Any
    door: Door
    world: World

    def event(self, name: str) -> int:
        """The number of an event whose handler has this name."""
        found = self.pages.fns.items()
        return next(int(number) for number, one in found if one.fn is not None and roles.name_of(one.fn) == name)

    def visitor(self, name: str) -> TestClient:
        made = TestClient(self.app, base_url="http://plumb.example", follow_redirects=False)
        made.cookies.set(self.door.cookie, self.door.session_for(name))
        return made


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    world = open_world(tmp_path_factory.mktemp("team"))
    settings = settings_for(world.folder.root, host="0.0.0.0")
    for role in ROLES:
        add_user(world.db, role, role)
    keeper = Door(settings)
    app = build_ui(Context(settings), keeper)
    mounted = [route.app for route in app.routes if isinstance(route, Mount) and hasattr(route.app, "get_blocks")]
    yield Team(app, mounted[0].get_blocks(), keeper, world)
    world.db.close()


def api_routes(found: list[BaseRoute], prefix: str = "") -> Iterator[APIRoute]:
    for route in found:
        if included := getattr(route, "original_router", None):
            yield from api_routes(list(included.routes))
        elif isinstance(route, APIRoute):
            yield route


def own_routes(team: Team) -> list[APIRoute]:
    """Of our own API, not of Gradio's mounted app."""
    return list(api_routes(list(build_api(Context(team.world.settings), team.door).routes)))


# every one declares ---------------------------------------------------------------------------------------------


def test_every_event_of_every_page_declares_its_role(team: Team) -> None:
    names = {roles.name_of(one.fn) for one in roles.handlers(team.pages)}
    assert len(names) > 90, "the walk no longer finds the pages' events"
    missing = sorted(names - role_table.LEAST.keys())
    assert not missing, f"declare the least role of {', '.join(missing)} in workbench/role_table.py"


def test_every_route_declares_its_role(team: Team) -> None:
    names = {roles.name_of(route.endpoint) for route in own_routes(team)}
    assert len(names) > 35, "the walk no longer finds the routes"
    missing = sorted(names - role_table.LEAST.keys())
    assert not missing, f"declare the least role of {', '.join(missing)} in workbench/role_table.py"


def test_the_table_names_nothing_that_is_gone(team: Team) -> None:
    names = {roles.name_of(one.fn) for one in roles.handlers(team.pages)}
    names |= {roles.name_of(route.endpoint) for route in own_routes(team)}
    assert sorted(role_table.LEAST.keys() - names) == []


def test_lambdas_read_only() -> None:
    """Two of one maker share a name; so none of them may be worth guarding."""
    assert {least for name, least in role_table.LEAST.items() if "<lambda>" in name} == {"annotator"}


def test_what_declares_nothing_is_the_admins() -> None:
    def undeclared() -> None: ...

    assert roles.least_role(undeclared) == "admin"


def test_no_page_makes_events_while_it_runs(team: Team) -> None:
    """`gr.render` would: they stand in no list that the test above walks."""
    assert not [one for one in team.pages.fns.values() if one.renderable is not None]


# every one asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_the_apis_routes_refuse_smaller_roles_and_no_others(team: Team, role: Role) -> None:
    visitor = team.visitor(role)
    for route in own_routes(team):
        if route.path in PUBLIC or route.path == "/logout":
            continue
        least = roles.least_role(route.endpoint)
        path = route.path.replace("{sha256}", "0" * 64)
        path = "/".join("1" if part.startswith("{") else part for part in path.split("/"))
        for method in route.methods or ():
            answer = visitor.request(method, path, json={} if method == "POST" else None)
            if may(role, least):
                assert answer.status_code != 403, f"{method} {path}: {answer.text}"
            else:
                assert answer.status_code == 403, f"{method} {path} answered {answer.status_code}: {answer.text}"
                assert f"This needs a{'n admin' if least == 'admin' else ' researcher'}" in answer.json()["error"]
                assert "admin can give you the role" in answer.json()["error"]


@pytest.mark.parametrize("role", ["annotator", "researcher"])
def test_events_called_by_hand_are_refused(team: Team, role: Role) -> None:
    visitor = team.visitor(role)
    tried = 0
    for number, one in team.pages.fns.items():
        if one.fn is None or may(role, roles.least_role(one.fn)):
            continue
        tried += 1
        body = {"data": [None] * len(one.inputs), "fn_index": number, "session_hash": "by hand"}
        for path in ("/gradio_api/run/predict", "/gradio_api/api/predict"):
            answer = visitor.post(path, json=body)
            refused = "This needs" in answer.text or "join the queue" in answer.text
            assert refused, f"{path} {roles.name_of(one.fn)}: {answer.status_code} {answer.text[:300]}"
    assert tried > 5


def test_the_queue_is_no_way_round(team: Team) -> None:
    """What streams goes through the queue; the refusal comes by its stream."""
    number = team.event("demo_loader.load_demo")
    body = {"data": [1], "fn_index": number, "session_hash": "queued"}
    told = []
    with team.visitor("annotator") as visitor:  # one loop for both requests, as a server has
        assert visitor.post("/gradio_api/queue/join", json=body).status_code == 200
        with visitor.stream("GET", "/gradio_api/queue/data?session_hash=queued") as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    told.append(json.loads(line[5:]))
    assert "This needs a researcher" in json.dumps(told)


def test_what_is_allowed_runs(team: Team) -> None:
    number = next(
        n for n, one in team.pages.fns.items() if one.fn and roles.name_of(one.fn) == "pages.people.opening"
    )
    body = {"data": [], "fn_index": number, "session_hash": "open"}
    for role in ROLES:
        answer = team.visitor(role).post("/gradio_api/run/predict", json=body)
        assert answer.status_code == 200
        assert ("<h2>Invite</h2>" in answer.text) == (role == "admin"), role
        assert f"you are <b><bdi>{role}" in answer.text.lower()


def test_a_call_without_a_person_is_refused(team: Team) -> None:
    """As from code that calls Gradio's own functions."""
    number = next(n for n, one in team.pages.fns.items() if one.fn is not None)
    with pytest.raises(gr.Error, match="session has ended"):
        asyncio.run(team.pages.process_api(number, [], request=None))


def test_a_new_role_holds_at_once_and_needs_no_new_session(team: Team) -> None:
    add_user(team.world.db, "rising", "annotator")
    visitor = team.visitor("rising")
    body = {"sample": 1, "on": True}
    assert visitor.post("/api/discard", json=body).status_code == 403
    set_role(team.world.db, "rising", "researcher")
    assert visitor.post("/api/discard", json=body).status_code == 404, "there is no such sample"
    set_role(team.world.db, "rising", "annotator")
    assert visitor.post("/api/discard", json=body).status_code == 403


def test_somebody_removed_is_refused_at_the_next_save(team: Team) -> None:
    add_user(team.world.db, "leaving", "annotator")
    visitor = team.visitor("leaving")
    candidate = team.world.candidates(team.world.sample(number=77), ["a"])[0]
    body = {"candidate": candidate.id, "metric": "helpfulness", "value": 4}
    assert visitor.post("/api/scores", json=body).status_code == 200
    remove_user(team.world.db, "leaving")
    answer = visitor.post("/api/scores", json=body | {"value": 0})
    assert answer.status_code == 401
    assert "error" in answer.json(), "the page reads this, keeps the change and says so"
    assert visitor.get("/images/" + "0" * 64).status_code == 401


def test_gradios_file_route_hands_nothing_of_ours_out(team: Team) -> None:
    team.world.folder.key()
    visitor = team.visitor("admin")
    for path in ("plumb.db", "runtime/key", "runtime/../plumb.db"):
        assert visitor.get(f"/gradio_api/file={team.world.folder.root}/{path}").status_code in (403, 404), path
    for path in (__file__, "/etc/passwd", "app.py"):
        assert visitor.get(f"/gradio_api/file={path}").status_code in (403, 404), path


# what the page is told ------------------------------------------------------------------------------------------


def test_the_page_is_told_what_to_dim_and_why(team: Team) -> None:
    assert team.visitor("admin").get("/api/me").json()["denied"] == {}
    mine = team.visitor("annotator").get("/api/me").json()
    assert (mine["name"], mine["role"], mine["login"]) == ("annotator", "annotator", True)
    text = json.dumps(mine["denied"])
    assert "[data-bulk]" in text
    assert "#pb-load-demo" in text
    assert all("People page" in reason for reason in mine["denied"])
    more = json.dumps(team.visitor("researcher").get("/api/me").json()["denied"])
    assert "#pb-load-demo" not in more
    assert "an admin" in more


def test_the_refusals_name_role_and_remedy() -> None:
    with pytest.raises(Forbidden, match="needs a researcher; you are an annotator"):
        roles.refuse_unless("annotator", "researcher")
    with pytest.raises(Forbidden, match="needs an admin; you are a researcher"):
        roles.refuse_unless("researcher", "admin")
    roles.refuse_unless("admin", "annotator")


def test_on_ones_own_machine_all_is_allowed(world: World) -> None:
    keeper = Door(world.settings)
    build_pages(Context(world.settings), keeper)
    visitor = TestClient(build_api(Context(world.settings), keeper), base_url="http://127.0.0.1")
    assert visitor.get("/api/me").json()["role"] == "admin"
    assert visitor.get("/api/me").json()["denied"] == {}


def test_names_of_wrapped_handlers_are_the_functions() -> None:
    from functools import partial

    from workbench.events import told

    assert roles.name_of(told(partial(login.inside))) == "login.inside"
    assert inspect.isfunction(login.inside)
