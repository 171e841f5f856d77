"""Outside endpoints: their names and keys, what they serve, one question with tries."""

from __future__ import annotations

import base64
import io
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import png
from jobs import outside, outside_models, outside_wire
from jobs.causes import Cause, cause_of
from jobs.judges.keys import scrub
from jobs.outside import OutsideError, Refused, ask, outside_choices, served_models, with_images
from jobs.outside_names import endpoint_key, is_loopback, key_variable, read_endpoints
from jobs.outside_stream import Limits
from jobs.outside_wire import Events
from jobs.runs import RunFolder
from jobs.settings import Settings, load_settings
from openai_server import Fault, OpenAiServer
from storage.errors import UserError
from storage.speakers import Speaker

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-very-secret-word"
LLAVA = Speaker("llava@office")
QUICK = Limits(first=20.0, silence=20.0, total=40.0)


@pytest.fixture
def server() -> Iterator[OpenAiServer]:
    with OpenAiServer() as made:
        yield made


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "BACKOFF_SECONDS", 0.001)


def settings_of(server: OpenAiServer | str, **more: str) -> Settings:
    url = server if isinstance(server, str) else server.url
    return Settings(devices=("cpu",), endpoints={"office": url, **more})


def question(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this?"}]}]


def asked(
    server: OpenAiServer,
    speaker: Speaker = LLAVA,
    messages: Any = None,
    check: Callable[[], None] = lambda: None,
    limits: Limits = QUICK,
    **values: Any,
) -> outside.OutsideAnswer:
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "max_tokens": 50, **values}
    return ask(settings_of(server), speaker, messages or question(), check=check, limits=limits, **drawn)


# names, addresses, keys ------------------------------------------------------------------------------------------


def test_endpoints_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().endpoints == {}
    monkeypatch.setenv("PLUMB_ENDPOINTS", " office=http://127.0.0.1:8000/v1/ , gpu-lab=https://models.example/v1")
    found = load_settings().endpoints
    assert found == {"office": "http://127.0.0.1:8000/v1", "gpu-lab": "https://models.example/v1"}
    assert key_variable("gpu-lab") == "PLUMB_ENDPOINT_KEY_GPU_LAB"
    assert endpoint_key("gpu-lab") is None
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_GPU_LAB", f" {KEY}\n")
    assert endpoint_key("gpu-lab") == KEY
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_GPU_LAB", "two words")
    with pytest.raises(UserError, match="PLUMB_ENDPOINT_KEY_GPU_LAB holds a character that no key has"):
        endpoint_key("gpu-lab")


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ("office=ftp://host/v1", "'office' must begin with http:// or https://"),
        ("office=127.0.0.1:8000/v1", "'office' must begin with"),
        ("office=http:///v1", "'office' must begin with"),
        ("office=", "'office' must begin with"),
        ("http://127.0.0.1:8000/v1", "entry 1 has no name"),
        ("a=http://h/v1,http://ada:secretword@h/v1?a=b", "entry 2 has no name"),
        ("Office=http://h/v1", "'Office' cannot be an endpoint's name"),
        ("my office=http://h/v1", "'my office' cannot be"),
        ("a=http://h/v1,a=http://i/v1", "names 'a' twice"),
        ("office=http://ada:secretword@h/v1", "holds a user's name or a password"),
        ("office=http://secretword@h/v1", "PLUMB_ENDPOINT_KEY_OFFICE"),
        ("office=http://ada:secretword,x@h/v1", "entry 2 has no name"),
        ("office=http://ada:secretword", "'office' cannot be read"),
        ("office=http://h/v1?key=secretword", "something behind its path"),
        ("office=http://h/v1#secretword", "something behind its path"),
        ("office=http://h:99999/v1", "'office' cannot be read"),
        ("office=http://[::1/v1", "'office' cannot be read"),
        ("office=http://h/v 1", "a character that no address has"),
        ("office=http://hé/v1", "a character that no address has"),
        ("office=http://h/v1/chat/completions", "goes too far"),
    ],
)
def test_an_address_that_cannot_be_is_refused_without_telling_it(
    given_: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMB_ENDPOINTS", given_)
    with pytest.raises(UserError) as caught:
        load_settings()
    assert told in str(caught.value)
    assert "PLUMB_ENDPOINTS" in str(caught.value)
    assert "secretword" not in str(caught.value)


@given(st.one_of(st.text(max_size=60), st.dictionaries(st.text(max_size=9), st.text(max_size=30), max_size=3)))
def test_whatever_is_given_is_read_or_refused(given_: Any) -> None:
    try:
        found = read_endpoints(given_)
    except UserError:
        return
    for name, url in found.items():
        assert Speaker(f"a model@{name}").outside == ("a model", name)
        assert url.startswith(("http://", "https://"))
        assert "@" not in url


def test_every_endpoints_key_is_taken_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", "abcdef")
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_LAB", "abcdefghij")
    assert scrub("a key abcdef and abcdefghij, twice abcdef") == "a key ••• and •••, twice •••"


def test_addresses_of_this_machine_are_known() -> None:
    for url in ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1"):
        assert is_loopback(url)
    for url in ("http://10.0.0.1/v1", "https://localhost.example/v1"):
        assert not is_loopback(url)


# what is served --------------------------------------------------------------------------------------------------


def test_choices_are_all_models_of_all_endpoints_that_answer(server: OpenAiServer) -> None:
    with OpenAiServer(models=("org/big", "bad\nname", "x" * 300)) as other:
        settings = settings_of(server, down="http://127.0.0.1:9/v1", lab=other.url)
        found = outside_choices(settings)
    assert found == [
        ("llava (office)", "llava@office"),
        ("llava-dpo (office)", "llava-dpo@office"),
        ("org/big (lab)", "org/big@lab"),
    ]
    assert "'down' cannot be reached" in served_models(settings, "down").problem


def test_no_endpoint_costs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_models, "served_models", lambda *_: pytest.fail("asked"))
    assert outside_choices(Settings(devices=("cpu",))) == []


def test_what_is_served_is_asked_once_a_minute_by_however_many(
    server: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(server)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(served_models(settings, "office"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.models for one in found} == {("llava", "llava-dpo")}
    assert server.listed == 1
    server.models = ("new",)
    assert served_models(settings, "office").models == ("llava", "llava-dpo")
    later = time.monotonic() + outside_models.KEPT_SECONDS + 1
    monkeypatch.setattr("jobs.outside_models.time.monotonic", lambda: later)
    assert served_models(settings, "office").models == ("new",)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("hang"), "did not begin to answer within"),
        (Fault("raw", body="<html>hello", content_type="text/html"), "what is no JSON (… a web page)"),
        (Fault("raw", body="[1]"), "JSON of another shape"),
        (Fault("raw", body='{"data": 3}'), "JSON that is no list of models"),
        (Fault("raw", body='{"data": [3, {"id": 4}]}'), "a list without models"),
        (Fault("raw", body=b'{"data": "\xff"}'), "text that is not UTF-8"),
        (Fault("raw", body="[" * 100_000), "what is no JSON"),
        (Fault("status", 401, {"error": {"message": f"bad key {KEY}"}}), "PLUMB_ENDPOINT_KEY_OFFICE"),
        (Fault("status", 302, "", headers={"location": "http://127.0.0.1:9/"}), "sends elsewhere (302)"),
        (Fault("status", 502, "<html>"), "a fault of its own at the moment (502: a web page)"),
        (Fault("no newline"), "more than a list of models"),
    ],
)
def test_whoever_lists_no_models_is_told_of_and_never_raises(
    server: OpenAiServer, fault: Fault, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside_models, "LIST_SECONDS", 0.3 if fault.kind == "hang" else 10.0)
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", KEY)
    server.lists = fault
    found = served_models(settings_of(server), "office")
    assert found.models == ()
    assert told.partition(" (…")[0] in found.problem
    assert KEY not in found.problem
    assert str(server.port) not in found.problem


def test_an_endpoint_that_is_not_set_has_no_models(server: OpenAiServer) -> None:
    found = served_models(settings_of(server), "lab")
    assert found.models == ()
    assert "There is no endpoint called 'lab'. There are office" in found.problem


# one question ----------------------------------------------------------------------------------------------------


def test_a_question_and_its_answer(server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", KEY)
    server.key = KEY
    found = asked(server)
    assert (found.text, found.finish, found.tokens) == ("It is a red circle.", "stop", 10)
    body = server.asked[0]
    assert body["model"] == "llava"
    assert body["messages"] == [{"role": "user", "content": "what is this?"}]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.7, 0.9, 5, 50)
    found = asked(server, max_tokens=2)
    assert (found.text, found.finish) == ("It is", "length")
    server.script("plain")
    assert asked(server).text == "It is a red circle.", "a server that doesn't stream is understood"
    server.usage = False
    assert asked(server).tokens == 5, "pieces, where nobody counts tokens"


def test_nothing_of_the_environment_is_sent(server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-of-somebody-else")
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "authorization: Bearer sk-of-somebody-else\nx-own: sk-of-somebody-else"
    )
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asked(server)
    served_models(settings_of(server), "office")
    sent = server.taken[0].headers
    assert "sk-of-somebody-else" not in json.dumps(dict(sent))
    assert "authorization" not in sent
    assert sent["accept-encoding"] == "identity"
    monkeypatch.setenv("PLUMB_ENDPOINT_KEY_OFFICE", KEY)
    asked(server)
    assert server.taken[1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("fault", [Fault("status", 429, {}), Fault("status", 503, "<html>"), "cut", "short"])
def test_what_may_be_over_soon_is_asked_again(server: OpenAiServer, fault: Fault | str) -> None:
    server.script(fault, fault)
    assert asked(server).text == "It is a red circle."
    assert len(server.asked) == 3


def test_tries_have_an_end(server: OpenAiServer) -> None:
    server.script(default=Fault("status", 500, {"error": {"message": "no room"}}))
    with pytest.raises(
        OutsideError, match=r"'office' has a fault .*\(500: no room\).* Given up after 6 tries"
    ) as caught:
        asked(server)
    assert len(server.asked) == outside.TRIES
    assert not isinstance(caught.value, UserError)
    assert cause_of(caught.value) is Cause.NETWORK


@pytest.mark.parametrize(
    ("fault", "kind", "of_the_prompt"),
    [
        (Fault("status", 400, {"error": {"message": "no images"}}), "refused", True),
        (Fault("status", 422, {"detail": "temperature"}), "refused", True),
        (Fault("status", 413, "<html>"), "too long", True),
        (
            Fault("status", 400, {"message": "maximum context length is 2048 tokens", "code": 400}),
            "too long",
            True,
        ),
        (Fault("status", 400, {"error": {"message": "x", "code": "context_length_exceeded"}}), "too long", True),
        (Fault("events", body=[{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}]), "refused", True),
        ("empty endless", "endless", True),
        ("no newline", "endless", True),
        (Fault("status", 401, {"error": "who?"}), "key", False),
        (Fault("status", 403, ""), "key", False),
        (Fault("status", 404, {"detail": "Not Found"}), "model", False),
        (Fault("status", 307, "", headers={"location": "http://127.0.0.1:9/"}), "garbage", False),
        (Fault("raw", body="<html>", content_type="text/html"), "garbage", False),
        (Fault("raw", body="x", headers={"content-encoding": "gzip"}), "garbage", False),
    ],
)
@pytest.mark.slow
def test_what_no_other_try_helps_is_asked_once(
    server: OpenAiServer, fault: Fault | str, kind: str, of_the_prompt: bool
) -> None:
    server.script(fault)
    with pytest.raises(OutsideError) as caught:
        asked(server)
    assert caught.value.kind == kind
    assert isinstance(caught.value, Refused) == isinstance(caught.value, UserError) == of_the_prompt
    assert len(server.asked) == 1
    assert cause_of(caught.value) is Cause.SETTING
    assert "'office'" in str(caught.value)
    assert str(server.port) not in str(caught.value)


def test_retry_after_is_obeyed_up_to_a_bound(server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(outside, "_pause", lambda seconds, check: waited.append(seconds))
    server.script(*(Fault("status", 429, {}, headers={"retry-after": word}) for word in ("7", "9999", "soon")))
    asked(server, limits=Limits(20, 20, 1000))
    assert waited[:2] == [7.0, outside.LONGEST_WAIT]
    assert waited[2] < 1.0
    server.script(Fault("status", 429, {}, headers={"retry-after": "30"}))
    with pytest.raises(OutsideError, match="asked too often"):
        asked(server, limits=Limits(20, 20, 25))  # there would be no time left
    assert len(waited) == 3


def test_nobody_there_is_told_after_all_tries() -> None:
    with pytest.raises(OutsideError, match=r"'office' cannot be reached .* Given up after 6 tries") as caught:
        ask(
            settings_of("http://127.0.0.1:9/v1"),
            LLAVA,
            question(),
            temperature=0,
            top_p=1,
            seed=0,
            max_tokens=5,
            check=lambda: None,
        )
    assert caught.value.kind == "down"
    assert cause_of(caught.value) is Cause.NETWORK


def test_an_unknown_model_names_those_that_there_are(server: OpenAiServer) -> None:
    with pytest.raises(
        OutsideError, match=r"does not know the model 'gone' .* It serves llava, llava-dpo; choose"
    ):
        asked(server, Speaker("gone@office"))
    server.models = None
    server.script(Fault("status", 404, {"detail": "Not Found"}))
    later = Speaker("llava@later")
    with pytest.raises(OutsideError, match="if it doesn't end in /v1"):
        ask(
            Settings(devices=("cpu",), endpoints={"later": server.url}),
            later,
            question(),
            temperature=0,
            top_p=1,
            seed=0,
            max_tokens=5,
            check=lambda: None,
        )


@pytest.mark.parametrize("kind", ["hang", "hang open", "pause"])
def test_stop_is_noticed_while_the_server_is_silent(
    server: OpenAiServer, kind: str, wait_for: Callable[..., None]
) -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        if server.at_once:
            raise Enough

    server.script(kind)
    with pytest.raises(Enough):
        asked(server, check=check, limits=Limits(first=900, silence=900, total=900))
    wait_for(lambda: server.left == [kind], "the server sees that nobody listens", 20)


@pytest.mark.slow
def test_a_silent_server_is_given_up(server: OpenAiServer) -> None:
    server.script(default="hang")
    with pytest.raises(OutsideError, match=r"did not begin to answer within 0\.2 s"):
        asked(server, limits=Limits(first=0.2, silence=5.0, total=30.0))
    server.script(default="pause")
    with pytest.raises(OutsideError, match=r"said nothing more within 0\.2 s"):
        asked(server, limits=Limits(first=5.0, silence=0.2, total=30.0))
    server.script(default=Fault("endless", body=" "))  # of characters that never fill the answer
    with pytest.raises(Refused, match=r"came to no end: 0.3 s have gone by"):
        asked(server, max_tokens=10**9, limits=Limits(5.0, 5.0, 0.3))


def test_options_that_a_server_refuses_are_left_out_from_then_on(server: OpenAiServer) -> None:
    server.script(default=Fault("unknown option", body="stream_options"))
    assert asked(server).tokens == 5
    assert ["stream_options" in body for body in server.asked] == [True, False]
    asked(server)
    assert len(server.asked) == 3, "it is not asked for again"
    told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.script(default=Fault("unknown option", body="max_tokens", headers={"told": told}))
    assert asked(server, max_tokens=2).finish == "length"
    assert server.asked[-1]["max_completion_tokens"] == 2
    server.script(default=Fault("unknown option", body="seed"))
    with pytest.raises(Refused, match=r"refuses the request .*seed"):  # without it, candidates would be no draws
        asked(server)


# messages --------------------------------------------------------------------------------------------------------


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), (200, 30, 30)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "mime"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_images_go_as_they_are_with_the_type_of_their_bytes(server: OpenAiServer, kind: str, mime: str) -> None:
    data = base64.b64encode(picture(kind)).decode()
    asked(server, messages=question({"type": "image", "data": data}))
    sent = server.asked[0]["messages"][0]["content"]
    assert sent[0] == {"type": "image_url", "image_url": {"url": f"data:image/{mime};base64,{data}"}}
    assert sent[1] == {"type": "text", "text": "what is this?"}


def test_bmp_goes_as_png() -> None:
    data = base64.b64encode(picture("BMP")).decode()
    part = outside_wire.as_sent(question({"type": "image", "data": data}))[0]["content"][0]
    head, _, body = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with PIL.Image.open(io.BytesIO(base64.b64decode(body))) as shown:
        assert (shown.size, shown.getpixel((0, 0))) == ((5, 4), (200, 30, 30))


@pytest.mark.parametrize("data", ["", "AAAA", "not base64!", base64.b64encode(b"BMxx").decode()])
def test_what_is_no_image_is_refused(server: OpenAiServer, data: str) -> None:
    with pytest.raises(Refused, match="An image cannot be sent"):
        asked(server, messages=question({"type": "image", "data": data}))
    assert server.asked == []


def test_too_many_bytes_are_not_sent(server: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_wire, "LARGEST_REQUEST", 20)
    data = base64.b64encode(png()).decode()
    with pytest.raises(Refused, match="Leave out the oldest image") as caught:
        asked(server, messages=question({"type": "image", "data": data}))
    assert caught.value.kind == "too long"


def test_half_characters_are_mended(server: OpenAiServer) -> None:
    asked(server, messages=[{"role": "user", "content": "a\ud83d b"}])
    assert server.asked[0]["messages"][0]["content"] == "a� b"
    server.script(Fault("events", body=[b'{"choices":[{"delta":{"content":"x\\ud83d"},"finish_reason":"stop"}]}']))
    assert asked(server).text == "x�"


def test_images_of_a_run_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.images.mkdir(parents=True)
    run.image("a.png").write_bytes(png())
    found = with_images(run, question({"type": "image", "image": "a.png"}))
    assert found[0]["content"][0] == {"type": "image", "data": base64.b64encode(png()).decode()}
    assert with_images(run, [{"role": "user", "content": "plain"}]) == [{"role": "user", "content": "plain"}]
    with pytest.raises(UserError, match=r"The image b\.png cannot be read"):
        with_images(run, question({"type": "image", "image": "b.png"}))
    for broken in (None, [{"role": "user"}], ["text"], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(UserError, match="another shape than a chat"):
            with_images(run, broken)  # type: ignore[arg-type]


# the stream of bytes ---------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["a", "é€", '{"x": 1}', "", "two\nlines"]), max_size=5), st.data())
def test_events_are_the_same_however_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [
        line for text in texts for line in [": ping", *(f"data: {part}" for part in text.split("\n")), "id: 3", ""]
    ]
    body = "".join(line + end for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    places = [0, *cuts, len(body)]
    decoder = Events()
    found: list[str] = []
    for start, stop in itertools.pairwise(places):
        found += decoder.feed(body[start:stop])
    found += decoder.end()
    assert found == texts


def test_a_line_without_end_costs_no_more_than_its_bytes() -> None:
    decoder = Events()
    assert [list(decoder.feed(b"x" * 1000)) for _ in range(500)] == [[]] * 500
    assert len(decoder._rest) == 500


def test_conversations_are_not_written_to_logs(server: OpenAiServer) -> None:
    code = (
        "import sys, logging; logging.basicConfig(level=logging.DEBUG)\n"
        "from jobs.outside import ask; from jobs.settings import Settings; from storage.speakers import Speaker\n"
        f"settings = Settings(devices=('cpu',), endpoints={{'office': {server.url!r}}})\n"
        "messages = [{'role': 'user', 'content': 'a private question'}]\n"
        "print(ask(settings, Speaker('llava@office'), messages, temperature=0, top_p=1, seed=0, max_tokens=9,"
        " check=lambda: None).text, 'torch' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "OPENAI_LOG": "debug", "PLUMB_ENDPOINT_KEY_OFFICE": KEY},
    )
    assert result.stdout == "It is a red circle. False\n"
    assert "private question" not in result.stderr
    assert KEY not in result.stderr


@pytest.mark.slow
def test_the_web_process_imports_the_package_only_when_it_asks() -> None:
    code = (
        "import sys, jobs.outside, workbench.outside_chat\n"
        "print([name for name in ('openai', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
