"""Who may come in: nobody unknown off loopback, on any route; no other site's page on loopback."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from gradio.processing_utils import move_files_to_cache
from starlette.routing import BaseRoute, Mount

import app as plumb
from factories import World, open_world, settings_for
from jobs.settings import local_user
from storage.errors import UserError
from storage.folder import DataFolder
from storage.occupants import _lock_app
from workbench import door as doors
from workbench.context import Context
from workbench.door import Door
from workbench.events import CONCURRENCY
from workbench.ui import build_pages, build_ui

ROOT = Path(__file__).resolve().parent.parent
BROWSER = {"accept": "text/html,application/xhtml+xml"}

CONCRETE = [
    "/",
    "/pairs",
    "/jobs",
    "/chat",
    "/contests",
    "/config",
    "/theme.css",
    "/manifest.json",
    "/robots.txt",
    "/favicon.ico",
    "/static/img/logo.svg",
    "/assets/index.js",
    "/plumb-static/plumb.css",
    "/plumb-static/plumb.js",
    "/gradio_api/info",
    "/gradio_api/app_id",
    "/gradio_api/token",
    "/gradio_api/user",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data?session_hash=a",
    "/gradio_api/upload",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/heartbeat/abc",
    "/gradio_api/startup-events",
    "/monitoring/summary",
    f"/images/{'0' * 64}",
    f"/thumbnails/{'0' * 64}",
    "/api/scores",
    "/api/undo",
    "/no/such/page",
    "//login",
    "/login/",
    "/login/x",
    "/health/x",
    "/LOGIN",
]


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Door, World]]:
    """The app as it listens on all addresses."""
    world = open_world(tmp_path_factory.mktemp("away"))
    settings = settings_for(world.folder.root, host="0.0.0.0")
    keeper = Door(settings)
    yield build_ui(Context(settings), keeper), keeper, world
    world.db.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, World]]:
    """The app on loopback."""
    world = open_world(tmp_path_factory.mktemp("home"))
    yield build_ui(Context(world.settings)), world
    world.db.close()


def client(app: Any, base: str = "http://plumb.example") -> TestClient:
    return TestClient(app, base_url=base, follow_redirects=False)


def paths(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(method, path with its parameters filled in) of every route, mounted apps included."""
    for route in routes:
        path = prefix + str(getattr(route, "path", ""))
        if isinstance(route, Mount):
            yield from paths(list(route.routes or []), path)
            yield "GET", path + "/x"
        elif included := getattr(route, "original_router", None):  # FastAPI's, for include_router
            yield from paths(included.routes, prefix)
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, re.sub(r"\{[^}]*\}", "x", path) or "/"


def test_every_route_is_closed_to_strangers(away: tuple[Any, Door, World]) -> None:
    app, _, _ = away
    known = sorted(set(paths(app.routes)))
    assert len(known) > 60, "the walk no longer finds Gradio's routes"
    assert ("POST", "/gradio_api/queue/join") in known
    assert any(path.startswith("/api/pairs/") for _, path in known)
    stranger = client(app)
    for method, path in known:
        if path in doors.PUBLIC:
            continue
        answer = stranger.request(method, path)
        assert answer.status_code == 401, f"{method} {path} answered {answer.status_code}"


@pytest.mark.parametrize("path", CONCRETE)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_concrete_paths_are_closed(away: tuple[Any, Door, World], method: str, path: str) -> None:
    answer = client(away[0]).request(method, f"http://plumb.example{path}")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_websockets_are_closed(away: tuple[Any, Door, World]) -> None:
    from starlette.testclient import WebSocketDenialResponse
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)) as refused:  # noqa: SIM117
        with client(away[0]).websocket_connect("/queue/join"):
            pass
    if isinstance(refused.value, WebSocketDenialResponse):
        assert refused.value.status_code == 401


def test_health_is_open_and_says_that_torch_is_absent(away: tuple[Any, Door, World]) -> None:
    answer = client(away[0]).get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


def test_a_stranger_with_a_browser_sees_the_form(away: tuple[Any, Door, World]) -> None:
    answer = client(away[0]).get('/pairs?status="><script>', headers=BROWSER)
    assert answer.status_code == 401
    assert 'name="token"' in answer.text
    assert "<script>" not in answer.text


def test_the_link_from_the_console_lets_in(away: tuple[Any, Door, World]) -> None:
    app, keeper, _ = away
    visitor = client(app)
    answer = visitor.get("/login", params={"token": keeper.token})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert visitor.get("/").status_code == 200
    assert visitor.get("/gradio_api/user").json() == local_user()
    assert visitor.get("/plumb-static/plumb.css").status_code == 200


def test_the_form_lets_in_and_leads_back(away: tuple[Any, Door, World]) -> None:
    app, keeper, _ = away
    visitor = client(app)
    answer = visitor.post("/login", data={"token": f" {keeper.token} ", "next": "/?sample=7&q=a b"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?sample=7&q=a%20b"


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/\n/evil"])
def test_a_login_never_leads_to_another_host(away: tuple[Any, Door, World], target: str) -> None:
    app, keeper, _ = away
    answer = client(app).post("/login", data={"token": keeper.token, "next": target})
    assert answer.headers["location"] == "/"


def test_a_wrong_token_and_a_forged_cookie_do_not(away: tuple[Any, Door, World], tmp_path: Path) -> None:
    app, keeper, _ = away
    visitor = client(app)
    assert visitor.get("/login", params={"token": "wrong"}).status_code == 401
    other = Door(settings_for(open_world(tmp_path).folder.root, host="0.0.0.0"))
    foreign = other.admit(other.token, "x")
    for value in (foreign, "root", "", '"', "a.b.c"):
        assert visitor.get("/", headers={"cookie": f"{keeper.cookie}={value}"}).status_code == 401


def test_an_old_session_ends(away: tuple[Any, Door, World], monkeypatch: pytest.MonkeyPatch) -> None:
    app, keeper, _ = away
    session = keeper.admit(keeper.token, "y")
    cookie = {"cookie": f"{keeper.cookie}={session}"}
    assert client(app).get("/config", headers=cookie).status_code == 200
    for strange in ('a={"x":"y"}', "a=b c", "foo", "a@b=1"):  # of another app on this host
        beside = {"cookie": f"{strange}; {keeper.cookie}={session}"}
        assert client(app).get("/config", headers=beside).status_code == 200, strange
    monkeypatch.setattr("workbench.sessions.SESSION_SECONDS", -1)
    assert client(app).get("/config", headers=cookie).status_code == 401


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    keeper = Door(settings_for(open_world(tmp_path).folder.root, host="0.0.0.0"))
    for _ in range(doors.ATTEMPTS):
        assert keeper.admit("guess", "10.0.0.1") is None
    with pytest.raises(doors.TooManyAttempts):
        keeper.admit(keeper.token, "10.0.0.1")
    assert keeper.admit(keeper.token, "10.0.0.2"), "others are not locked out"


def test_on_loopback_the_user_is_the_systems(home: tuple[Any, World]) -> None:
    visitor = client(home[0], "http://127.0.0.1:7860")
    assert visitor.get("/gradio_api/user").json() == local_user()
    for path in ("/", "/pairs", "/jobs", "/chat", "/contests"):
        answer = visitor.get(path, headers=BROWSER)
        assert answer.status_code == 200, path
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "plumb:7860"])
def test_a_foreign_name_is_refused_on_loopback(home: tuple[Any, World], host: str) -> None:
    answer = client(home[0], "http://127.0.0.1:7860").get("/", headers={"host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "127.0.0.2:1"])
def test_loopbacks_own_names_are_served(home: tuple[Any, World], host: str) -> None:
    assert client(home[0]).get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860"]
)
def test_another_sites_page_cannot_post(home: tuple[Any, World], origin: str) -> None:
    visitor = client(home[0], "http://127.0.0.1:7860")
    for path in ("/api/undo", "/gradio_api/queue/join", "/gradio_api/upload"):
        assert visitor.post(path, headers={"origin": origin}).status_code == 403
    own = visitor.post("/api/undo", headers={"origin": "http://127.0.0.1:7860"})
    assert own.status_code == 404
    assert own.json() == {"error": "There is nothing to undo."}


def test_the_data_folder_is_not_served(home: tuple[Any, World]) -> None:
    app, world = home
    visitor = client(app, "http://127.0.0.1:7860")
    for path in (world.folder.database, world.folder.runtime / "key", ROOT / "app.py"):
        assert visitor.get(f"/gradio_api/file={path}").status_code in (403, 404)
    for name in ("../plumb.css", "..%2f..%2fapp.py", "%2e%2e/door.py"):
        assert visitor.get(f"/plumb-static/{name}").status_code == 404


def test_every_gradio_event_has_a_concurrency_limit(home: tuple[Any, World]) -> None:
    root = build_pages(Context(home[1].settings))
    assert root._queue.default_concurrency_limit == CONCURRENCY > 1
    for fn in root.fns.values():
        assert fn.concurrency_limit == "default" or (fn.concurrency_limit or 0) > 1, fn.api_name


# --- app.py ---


def run_app(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB_")}
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_named_with_its_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_app("--data", str(tmp_path), "--port", str(port))
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    world = open_world(tmp_path)
    world.db.conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('plumb', 'm999_later', '')"
    )
    world.db.close()
    result = run_app("--data", str(tmp_path), "--port", "0")
    assert result.returncode == 1
    assert "m999_later" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "port = 70000"),
        (["--host", "203.0.113.7", "--port", "0"], "--host"),
        (["--port", "0", "--data", "/proc/plumb"], "--data"),
    ],
)
def test_bad_settings_end_with_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run_app(*arguments, PLUMB_DATA=str(tmp_path))
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_listening_socket_takes_any_free_port(tmp_path: Path) -> None:
    listener = plumb.bind(settings_for(tmp_path, port=0))
    port = listener.getsockname()[1]
    try:
        with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 is in use"):
            plumb.bind(settings_for(tmp_path, port=port))
    finally:
        listener.close()


@pytest.mark.slow
def test_it_serves_off_loopback_with_a_token_on_the_console(tmp_path: Path) -> None:
    import httpx

    data = str(tmp_path / "data")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLUMB_")}
    clean["PLUMB_SUPERVISOR_IDLE_SECONDS"] = "0"
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--data", data, "--host", "0.0.0.0", "--port", "0"],
            cwd=ROOT,
            env=clean,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://[^/]+:(\d+)/login\?token=(\S+)", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        base = f"http://127.0.0.1:{found[1]}"
        with httpx.Client(base_url=base, timeout=30) as visitor:
            assert visitor.get("/").status_code == 401
            assert visitor.get("/login", params={"token": found[2]}).status_code == 303
            assert visitor.get("/").status_code == 200
            assert visitor.get("/health").json() == {"status": "ok", "torch_imported": False}
        assert _lock_app(DataFolder(Path(data)), fcntl.LOCK_EX) is None, "nobody restores into it meanwhile"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("field", ["chat-box", "contest-file"])
def test_no_file_of_the_machine_is_read_for_a_forged_upload(context: Context, tmp_path: Path, field: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not uploaded")
    root = build_pages(context)
    block = next(one for one in root.blocks.values() if getattr(one, "elem_id", None) == field)
    upload = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}

    def take() -> None:
        LocalContext.blocks.set(root)
        move_files_to_cache(upload, block, check_in_upload_folder=True)

    with pytest.raises(InvalidPathError, match="not uploaded"):
        copy_context().run(take)
