"""The contract of the three clients: the real packages against a server of the tests' own, over HTTP."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factories import png
from gemini_server import GeminiServer, Step
from jobs.judges.calls import CallError, CallOptions, Client, Picture, Prompt, Provider, Reply
from jobs.judges.clients.errors import error_of, retry_after
from jobs.judges.clients.make import make_client
from jobs.judges.clients.schemas import gemini_schema, is_strict, order_properties
from jobs.judges.clients.texts import shorten
from jobs.judges.keys import HIDDEN
from jobs.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
KEY = "test-key-0123456789-abcdef"
MODEL = "gemini-2.5-flash"
CLIENTS = ["google-generativeai", "google-genai", "openai"]
GEMINI = CLIENTS[:2]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string"},
        "answers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "letter": {"type": "string", "enum": ["A", "B"]},
                    "correctness": {"type": "integer", "minimum": 0, "maximum": 4},
                    "met": {"type": "boolean"},
                },
                "required": ["letter", "correctness", "met"],
                "additionalProperties": False,
            },
        },
        "all": {"type": "boolean"},
    },
    "required": ["reasoning", "answers", "all"],
    "additionalProperties": False,
}
RED, JPEG = Picture(png(), "image/png"), Picture(b"\xff\xd8 not looked at \xfb\xff\xfe", "image/jpeg")
PLAIN = Prompt("You judge.", ("What is it?",))
FAST = CallOptions(timeout=10.0)

Make = Callable[..., Client]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer(hold=20.0) as running:
        yield running


@pytest.fixture(params=CLIENTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A client of this name that talks to this server, with the key in the environment."""
    made: list[Client] = []

    def build(name: str, server: GeminiServer, *, key: str = KEY, threads: int = 16) -> Client:
        monkeypatch.setenv("OPENAI_API_KEY" if name == "openai" else "GEMINI_API_KEY", key)
        made.append(make_client(provider_of(name), settings_of(name, server), threads=threads))
        return made[-1]

    yield build
    for client in made:
        client.close()


@pytest.fixture
def client(name: str, server: GeminiServer, make: Make) -> Client:
    return make(name, server)


def provider_of(name: str) -> Provider:
    return "openai" if name == "openai" else "gemini"


def settings_of(name: str, server: GeminiServer) -> Settings:
    if name == "openai":
        return Settings(devices=("cpu",), openai_url=server.openai_url)
    return Settings(devices=("cpu",), gemini_client=name, gemini_url=server.url)


def failure(client: Client, prompt: Prompt = PLAIN, options: CallOptions = FAST, model: str = MODEL) -> CallError:
    with pytest.raises(CallError) as caught:
        client.ask(model, prompt, options)
    assert KEY not in str(caught.value)
    return caught.value


# what goes out -----------------------------------------------------------------------------------------


def test_text_comes_back_as_it_is(client: Client, server: GeminiServer) -> None:
    text = 'Ünï "quoted" \n```json\n{"a": 1}\n``` 語 🙂'
    server.script(Step(text=text))
    reply = client.ask(MODEL, PLAIN, FAST)
    assert (reply.text, reply.finish, reply.detail) == (text, "complete", "")
    assert server.received == server.billed == 1


def test_system_parts_and_options_arrive_in_order(client: Client, server: GeminiServer) -> None:
    prompt = Prompt("Rules.\nMore rules.", ("First", RED, "then <b>", JPEG, "", "last 語"))
    client.ask(MODEL, prompt, CallOptions(temperature=0.0, max_output_tokens=321, timeout=10.0))
    asked = server.requests[0]
    assert asked.model == MODEL
    assert asked.system == "Rules.\nMore rules."
    assert asked.order == "tptpt"
    assert asked.texts == ("First", "then <b>", "last 語")
    assert asked.pictures == ((RED.data, "image/png"), (JPEG.data, "image/jpeg"))
    assert (asked.temperature, asked.max_tokens) == (0.0, 321)
    assert asked.schema is None


def test_no_system_is_none(client: Client, server: GeminiServer) -> None:
    client.ask(MODEL, Prompt("", ("Hello",)), FAST)
    assert server.requests[0].system == ""
    assert "systemInstruction" not in server.requests[0].body


def test_half_a_surrogate_pair_does_not_stop_a_request(client: Client, server: GeminiServer) -> None:
    client.ask(MODEL, Prompt("a\ud83d", ("b\ude00c",)), FAST)
    assert server.requests[0].texts == ("b�c",)
    assert server.requests[0].system == "a�"


def test_schema_keeps_its_order_and_letters(client: Client, server: GeminiServer) -> None:
    client.ask(MODEL, Prompt("", ("Judge.",), SCHEMA), FAST)
    schema = server.requests[0].schema
    assert schema is not None
    assert list(schema["properties"]) == ["reasoning", "answers", "all"]
    assert schema["required"] == ["reasoning", "answers", "all"]
    answer = schema["properties"]["answers"]["items"]
    assert list(answer["properties"]) == ["letter", "correctness", "met"]
    assert answer["properties"]["letter"] == {"type": "string", "enum": ["A", "B"]}
    assert answer["properties"]["correctness"]["type"] == "integer"
    assert answer["properties"]["met"] == {"type": "boolean"}


@pytest.mark.parametrize("name", GEMINI)
def test_gemini_gets_json_and_unblocked_categories(client: Client, server: GeminiServer, name: str) -> None:
    client.ask(MODEL, Prompt("", ("Judge.",), SCHEMA), FAST)
    body = server.requests[0].body
    assert body["generationConfig"]["responseMimeType"] == "application/json"
    schema = body["generationConfig"]["responseSchema"]
    order = schema.get("propertyOrdering") or schema["property_ordering"]  # Google reads both spellings
    assert order == ["reasoning", "answers", "all"]
    settings = body["safetySettings"]
    assert len(settings) == 4
    assert {one["threshold"] for one in settings} <= {"BLOCK_NONE", 4}  # the old package sends numbers
    assert "additionalProperties" not in json.dumps(body)
    assert server.requests[0].headers["x-goog-api-key"] == KEY


@pytest.mark.parametrize("name", ["google-genai", "openai"])
def test_ranges_are_sent_where_they_are_known(client: Client, server: GeminiServer, name: str) -> None:
    client.ask(MODEL, Prompt("", ("Judge.",), SCHEMA), FAST)
    schema = server.requests[0].schema
    assert schema is not None
    number = schema["properties"]["answers"]["items"]["properties"]["correctness"]
    assert (number["minimum"], number["maximum"]) == (0, 4)


@pytest.mark.parametrize("name", ["openai"])
def test_openai_schema_is_strict(client: Client, server: GeminiServer, name: str) -> None:
    client.ask(MODEL, Prompt("", ("Judge.",), SCHEMA), FAST)
    shape = server.requests[0].body["response_format"]["json_schema"]
    assert shape["strict"] is True
    assert shape["schema"] == SCHEMA
    assert not is_strict({**SCHEMA, "required": ["reasoning"]})


def test_a_refused_schema_is_left_out_and_remembered(client: Client, server: GeminiServer) -> None:
    server.script("no schema", Step(text="{}"), Step(text="{}"))
    prompt = Prompt("", ("Judge.",), SCHEMA)
    assert client.ask(MODEL, prompt, FAST).text == "{}"
    assert client.ask(MODEL, prompt, FAST).text == "{}"
    assert [asked.schema is None for asked in server.requests] == [False, True, True]
    client.ask("another-model", prompt, FAST)
    assert server.requests[-1].schema is not None


def test_another_400_is_told_and_not_sent_again(client: Client, server: GeminiServer) -> None:
    server.script("400")
    assert failure(client, Prompt("", ("Judge.",), SCHEMA)).kind == "refused"
    assert server.received == 1


def test_schemas_in_geminis_words() -> None:
    made = gemini_schema({**SCHEMA, "properties": {**SCHEMA["properties"], "all": {"enum": [1]}}}, ranges=False)
    number = made["properties"]["answers"]["items"]["properties"]["correctness"]
    assert number == {"type": "INTEGER"}
    assert made["properties"]["all"] == {"type": "STRING"}  # its enum knows strings alone
    made["required"] = ["answers"]
    order_properties(made)
    assert made["propertyOrdering"] == ["answers", "reasoning", "all"]
    assert made["properties"]["answers"]["items"]["propertyOrdering"] == ["letter", "correctness", "met"]


# what comes back ---------------------------------------------------------------------------------------


def test_tokens_are_counted_with_thinking(client: Client, server: GeminiServer, name: str) -> None:
    usage = (
        {"prompt_tokens": 812, "completion_tokens": 97, "completion_tokens_details": {"reasoning_tokens": 60}}
        if name == "openai"
        else {
            "promptTokenCount": 812,
            "candidatesTokenCount": 37,
            "thoughtsTokenCount": 60,
            "totalTokenCount": 909,
        }
    )
    server.script(Step(text="x", usage=usage))
    reply = client.ask(MODEL, PLAIN, FAST)
    assert (reply.tokens_in, reply.tokens_out) == (812, 97)


def test_missing_counts_are_0(client: Client, server: GeminiServer) -> None:
    server.script(Step(text="x", usage={}))
    assert client.ask(MODEL, PLAIN, FAST) == Reply("x", "complete", 0, 0)


@pytest.mark.parametrize("name", GEMINI)
@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "complete"),
        ("MAX_TOKENS", "truncated"),
        ("SAFETY", "safety"),
        ("BLOCKLIST", "safety"),
        ("PROHIBITED_CONTENT", "safety"),
        ("SPII", "safety"),
        ("RECITATION", "recitation"),
        ("OTHER", "other"),
        ("LANGUAGE", "other"),
        ("TOO_MANY_TOOL_CALLS", "other"),  # newer than the old package
        ("FINISH_REASON_UNSPECIFIED", "other"),
    ],
)
def test_geminis_finish_reasons(
    client: Client, server: GeminiServer, name: str, reason: str, finish: str, recwarn: pytest.WarningsRecorder
) -> None:
    server.script(Step("finish", text="some text", finish=reason))
    reply = client.ask(MODEL, PLAIN, FAST)
    assert (reply.text, reply.finish) == ("some text", finish)
    assert reply.detail == ("" if finish == "complete" else f"finish reason {reason}")
    assert not [one for one in recwarn if "FinishReason" in str(one.message)]


@pytest.mark.parametrize("name", ["openai"])
@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "complete"), ("length", "truncated"), ("content_filter", "safety"), ("x", "other")],
)
def test_openais_finish_reasons(client: Client, server: GeminiServer, name: str, reason: str, finish: str) -> None:
    server.script(Step("finish", text="some text", finish=reason))
    assert client.ask(MODEL, PLAIN, FAST).finish == finish


def test_a_blocked_reply_has_no_text(client: Client, server: GeminiServer, name: str) -> None:
    server.script("blocked", "recitation")
    blocked, recited = client.ask(MODEL, PLAIN, FAST), client.ask(MODEL, PLAIN, FAST)
    assert (blocked.text, blocked.finish) == ("", "safety")
    assert (recited.text, recited.finish) == ("", "safety" if name == "openai" else "recitation")
    assert blocked.tokens_in > 0
    if name != "openai":
        assert "HARASSMENT HIGH" in blocked.detail


def test_a_blocked_prompt_is_a_reply_without_text(client: Client, server: GeminiServer, name: str) -> None:
    server.script("prompt blocked")
    reply = client.ask(MODEL, PLAIN, FAST)
    assert (reply.text, reply.finish) == ("", "safety")
    assert ("content filter" if name == "openai" else "PROHIBITED_CONTENT") in reply.detail


def test_no_candidate_and_no_text_are_no_errors(client: Client, server: GeminiServer) -> None:
    server.script("empty", Step(text=""))
    none, empty = client.ask(MODEL, PLAIN, FAST), client.ask(MODEL, PLAIN, FAST)
    assert (none.text, none.finish) == ("", "other")
    assert none.detail.startswith("The reply holds no")
    assert (empty.text, empty.finish) == ("", "complete")


def test_truncated_and_malformed_texts_come_through(client: Client, server: GeminiServer) -> None:
    server.script("truncated", "malformed")
    assert client.ask(MODEL, PLAIN, FAST).finish == "truncated"
    assert client.ask(MODEL, PLAIN, FAST).finish == "complete"


# what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "kind", "status"),
    [
        (Step("minute"), "minute", 429),
        (Step("bare"), "minute", 429),
        (Step("day"), "day", 429),
        (Step("400"), "refused", 400),
        (Step("413"), "refused", 413),
        (Step("key"), "key", None),
        (Step("401"), "key", 401),
        (Step("forbidden"), "key", 403),
        (Step("model"), "model", 404),
        (Step("500"), "server", 500),
        (Step("503"), "server", 503),
        (Step("503 page"), "server", 503),
    ],
    ids=lambda value: value.kind if isinstance(value, Step) else None,
)
def test_refusals(
    client: Client, server: GeminiServer, name: str, step: Step, kind: str, status: int | None
) -> None:
    server.script(step)
    error = failure(client)
    assert error.kind == kind
    assert error.status == (status or (401 if name == "openai" else 400))
    assert error.retry_after is None
    assert not error.may_be_billed
    assert server.received == 1, "the package has asked again by itself"
    assert server.billed == 0
    assert "<" not in str(error)


@pytest.mark.parametrize("kind", ["minute", "day", "503"])
def test_the_wait_that_is_asked_for(client: Client, server: GeminiServer, kind: str) -> None:
    server.script(
        Step(kind, retry=37.5),
        Step(kind, retry_header="12"),
        Step(kind, retry=2.0, retry_header="9"),
        Step(kind, retry_header="soon"),
    )
    waits = [failure(client).retry_after for _ in range(4)]
    assert waits[0] == 37.5
    assert waits[1] == 12.0
    assert waits[2] == 9.0
    assert waits[3] is None


def test_waits_in_all_their_forms() -> None:
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    date = {"retry-after": "Sun, 22 Nov 2026 12:01:30 GMT"}
    past = {"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT"}
    assert retry_after(date, {}, now) == 90.0
    assert retry_after(past, {}, now) == 0.0
    assert retry_after({"retry-after-ms": "1500"}, {}) == 1.5
    assert retry_after({}, {"message": "Please try again in 6m0.5s."}) == 360.5
    assert retry_after({}, {"message": "Please retry in 120ms"}) == pytest.approx(0.12)
    for header in ("-3", "nan", "inf", "", "99999999999999999999 GMT"):
        assert retry_after({"retry-after": header}, {"message": "in 5 days"}) is None, header
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}
    assert retry_after({}, {"details": [{**info, "retryDelay": {"seconds": "37"}}]}) == 37.0
    assert retry_after({}, {"details": [{**info, "retryDelay": "soon"}, "odd", None]}) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", {}),
        ("<html>", {}),
        ("[]", {}),
        ("7", {}),
        ('[{"error": {"message": "a"}}]', {"message": "a"}),
        ('{"error": "b"}', {"message": "b"}),
        ('{"detail": "c"}', {"detail": "c"}),
    ],
)
def test_errors_are_found_in_any_body(body: str, error: dict[str, Any]) -> None:
    assert error_of(body) == error


def test_a_gateway_that_gave_up_may_be_billed(client: Client, server: GeminiServer) -> None:
    server.script("504")
    error = failure(client)
    assert (error.kind, error.may_be_billed) == ("server", True)


def test_a_page_instead_of_a_reply(client: Client, server: GeminiServer) -> None:
    server.script("not json")
    error = failure(client)
    assert (error.kind, error.status, error.may_be_billed) == ("server", 200, True)


def test_a_timeout(client: Client, server: GeminiServer) -> None:
    server.script("timeout")
    error = failure(client, options=CallOptions(timeout=0.3))
    assert (error.kind, error.status, error.may_be_billed) == ("timeout", None, True)
    assert "0.3 s" in str(error)
    assert client.ask(MODEL, PLAIN, FAST).finish == "complete"
    assert server.received == 2


@pytest.mark.parametrize("step", ["reset", "drop"])
def test_a_connection_that_breaks(client: Client, server: GeminiServer, step: str) -> None:
    server.script(step)
    error = failure(client)
    assert (error.kind, error.status, error.may_be_billed) == ("connection", None, True)
    assert client.ask(MODEL, PLAIN, FAST).finish == "complete"
    assert (server.received, server.billed) == (2, 2)


def test_nobody_listens(client: Client, server: GeminiServer, name: str) -> None:
    server.stop()
    error = failure(client)
    assert (error.kind, error.may_be_billed) == ("connection", False)
    assert ("PLUMB_OPENAI_URL" if name == "openai" else "PLUMB_GEMINI_URL") in str(error)


@pytest.mark.parametrize("model", ["", "two words", "a/b/c", "x?key=1", "../x"])
@pytest.mark.parametrize("name", GEMINI)
def test_names_that_no_model_has(client: Client, server: GeminiServer, name: str, model: str) -> None:
    assert failure(client, model=model).kind == "model"
    assert server.received == 0


@pytest.mark.parametrize("name", ["openai"])
def test_an_account_without_money_is_no_matter_of_waiting(client: Client, server: GeminiServer, name: str) -> None:
    server.script("poor")
    error = failure(client)
    assert (error.kind, error.status) == ("refused", 429)


# keys --------------------------------------------------------------------------------------------------


def test_the_key_is_needed_and_goes_in_a_header(make: Make, name: str) -> None:
    with GeminiServer(key=KEY) as server:
        assert make(name, server).ask(MODEL, PLAIN, FAST).finish == "complete"
        error = failure(make(name, server, key="wrong-key-12345"))
        assert error.kind == "key"
        assert ("OPENAI_API_KEY" if name == "openai" else "GEMINI_API_KEY") in str(error)
        assert server.received == 2
        for asked in server.requests:
            assert KEY not in asked.path
            assert "key=" not in asked.path
            assert KEY not in json.dumps(asked.body)


def test_a_key_in_a_providers_words_is_hidden(
    client: Client, server: GeminiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script("forbidden")
    error = failure(client)
    assert HIDDEN in str(error)
    assert error.__cause__ is None
    assert KEY not in caplog.text


@pytest.mark.parametrize("name", ["openai"])
def test_a_mask_that_shows_the_ends_of_a_key_is_covered(client: Client, server: GeminiServer, name: str) -> None:
    server.script("key")
    assert "sk-proj" not in str(failure(client))


@pytest.mark.parametrize("name", CLIENTS)
def test_without_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(devices=("cpu",), gemini_client="google-genai" if name == "google-genai" else CLIENTS[0])
    with pytest.raises(CallError, match="API_KEY") as caught:
        make_client(provider_of(name), settings)
    assert caught.value.kind == "no key"
    assert "start Plumb again" in str(caught.value)


def test_a_local_endpoint_needs_no_key() -> None:
    with GeminiServer() as server:
        client = make_client("openai", settings_of("openai", server))
        client.ask(MODEL, PLAIN, FAST)
        client.close()
        assert server.requests[0].key == "none"


@pytest.mark.parametrize("name", GEMINI)
def test_google_api_key_serves_too(name: str, server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")  # which is another service
    client = make_client("gemini", settings_of(name, server))
    client.ask(MODEL, PLAIN, FAST)
    client.close()
    assert server.requests[0].headers["x-goog-api-key"] == KEY


def test_an_address_with_a_password_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch, server: GeminiServer
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = server.openai_url.replace("http://", "http://ada:secret-word@")
    client = make_client("openai", Settings(devices=("cpu",), openai_url=url))
    server.script("500")
    assert "secret-word" not in str(failure(client))
    client.close()


# threads -----------------------------------------------------------------------------------------------


def test_16_threads_each_get_their_own_reply(make: Make, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    together = threading.Barrier(16)

    def answer(text: str, pictures: list[bytes]) -> str:
        together.wait(30)  # none is answered before all have been asked
        return f"reply to {text} with {pictures[0].decode()}"

    with GeminiServer(answer=answer) as server, ThreadPoolExecutor(16) as pool:
        client = make(name, server)

        def ask(number: int) -> str:
            picture = Picture(f"picture {number}".encode(), "image/png")
            return client.ask(MODEL, Prompt("", (f"question {number}", picture)), CallOptions(timeout=60)).text

        replies = list(pool.map(ask, range(32)))
        assert replies == [f"reply to question {number} with picture {number}" for number in range(32)]
        assert server.received == 32
        assert server.most_at_once == 16
        assert server.connections <= 16, "connections are not used again"
        assert "pool is full" not in caplog.text


def test_faults_among_threads_stay_with_their_requests(make: Make, name: str) -> None:
    with GeminiServer(faults=0.4, kinds=("500", "minute", "reset"), seed=3, answer=lambda text, _: text) as server:
        client = make(name, server)

        def ask(number: int) -> str:
            try:
                return client.ask(MODEL, Prompt("", (f"question {number}",)), FAST).text
            except CallError as error:
                return error.kind

        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(ask, range(60)))
        expected = {"server": server.by_kind["500"], "minute": server.by_kind["minute"]}
        assert {kind: replies.count(kind) for kind in expected} == expected
        assert replies.count("connection") == server.by_kind["reset"]
        rights = [reply == f"question {number}" for number, reply in enumerate(replies)]
        assert sum(rights) == server.by_kind["ok"] > 0
        assert server.received == 60


def test_importing_the_old_package_warns_nobody() -> None:
    code = "import warnings; warnings.simplefilter('error'); import jobs.judges.clients.generativeai"
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "support" not in result.stderr


def test_making_no_client_imports_no_package() -> None:
    code = (
        "import sys, jobs.judges.clients.make; "
        "print([name for name in ('openai', 'google.genai', 'google.generativeai') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for name in GEMINI:
        settings = Settings(devices=("cpu",), gemini_client=name, gemini_url="http://")
        error = failure(make_client("gemini", settings))
        assert not error.may_be_billed, name


def test_half_a_key_is_not_left_where_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "sk-" + "SECRET" * 6)
    assert "SECRET" not in shorten("x" * 280 + " sk-" + "SECRET" * 6 + " and more")
