"""The Judges page: keys that are never shown, the table of prices, rubric versions, the judge of the key J."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import World, settings_for
from jobs.configs import JudgeConfig
from jobs.desk import read_desk, write_desk
from jobs.judges.ledger import Budget, Hold, Ledger
from jobs.judges.terms import DEFAULT, ModelTerms, Terms, read_terms, write_terms
from jobs.rubric import list_rubrics, load_rubric
from storage.errors import Conflict, NotFound, PlumbError, UserError
from workbench import judge_desk, judge_views
from workbench.context import Context
from workbench.forms import shown
from workbench.pages import judges as page

SECRET = "sk-not-to-be-seen-0123456789"
ROW = {
    "model": "gemini-x",
    "input_price": "0.30",
    "output_price": "2.5",
    "requests_a_minute": "600",
    "tokens_a_minute": "1,000,000",
    "requests_a_day": "10000",
    "tokens_a_day": "",
}


@pytest.fixture
def context(world: World, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Context(world.settings)


def table(*rows: dict[str, str]) -> str:
    return json.dumps(rows)


# --- keys ---


def test_without_a_key_the_page_says_what_to_do(context: Context) -> None:
    found = judge_desk.show_keys(context)
    assert "export GEMINI_API_KEY=…" in found
    assert "start Plumb" in found
    assert "export PLUMB_OPENAI_URL=" in found
    assert "key set" not in found


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
def test_a_key_is_named_by_its_variable_and_never_shown(
    context: Context, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, SECRET)
    found = judge_desk.show_keys(context)
    assert f"key set</span> <code>{name}</code>" in found
    assert "export GEMINI_API_KEY" not in found
    assert SECRET not in found


def test_client_and_addresses_are_told_without_what_is_secret_in_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = settings_for(
        world.folder.root,
        gemini_client="google-genai",
        gemini_url="https://proxy.example/v1?key=hidden",
        openai_url="http://joe:password@127.0.0.1:8000/v1",
    )
    gemini, openai = judge_desk.connections(settings)
    assert gemini.package.startswith("google-genai ")
    assert gemini.address == "https://proxy.example/v1"
    assert openai.address == "http://127.0.0.1:8000/v1"
    assert openai.obstacle == "", "a local endpoint may go without a key"
    found = judge_views.keys([gemini, openai])
    assert "none needed" in found
    assert "hidden" not in found
    assert "password" not in found


# --- prices and limits ---


def test_the_table_that_is_shown_is_read_back_as_it_was(context: Context) -> None:
    rows = [{name: judge_views._shown(row, name) for name in ModelTerms.model_fields} for row in DEFAULT.models]
    empty = dict.fromkeys(ROW, "")
    assert judge_desk.read_table(table(*rows, empty), 10, "America/Los_Angeles") == DEFAULT
    html = judge_views.prices(DEFAULT)
    assert html.count("<tr>") == len(DEFAULT.models) + 2, "a head and a row for another model"
    assert html.count('aria-label="Requests a day"') == len(DEFAULT.models) + 1


prices = st.floats(0, 10_000, allow_nan=False).map(lambda value: round(value, 6))
limits = st.integers(1, 10_000_000)


@given(prices, prices, limits, limits, limits, st.one_of(limits, st.just(10**12)))
def test_any_row_survives_its_fields(
    paid_in: float, paid_out: float, minute: int, tokens: int, day: int, tokens_a_day: int
) -> None:
    row = ModelTerms(
        model="m",
        input_price=paid_in,
        output_price=paid_out,
        requests_a_minute=minute,
        tokens_a_minute=tokens,
        requests_a_day=day,
        tokens_a_day=tokens_a_day,
    )
    texts = {name: judge_views._shown(row, name) for name in ModelTerms.model_fields}
    assert judge_desk.read_table(table(texts), 1.0, "UTC").models == (row,)


def test_saving_the_table_keeps_it_and_shows_it_anew(context: Context) -> None:
    message, html = judge_desk.save_table(context, table(ROW, {**ROW, "model": "qwen*"}), 2.5, "UTC")
    assert "Saved" in message
    assert 'value="qwen*"' in html
    kept = read_terms(context.folder.judges)
    assert kept.money_a_day == 2.5
    assert kept.day_begins_in == "UTC"
    assert kept.of("qwen-vl").tokens_a_minute == 1_000_000
    assert [row.model for row in kept.models] == ["gemini-x", "qwen*"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"input_price": "0,30"}, r"Row 2 \(other\), \$ per million tokens in = '0,30': give dollars"),
        ({"input_price": "nan"}, r"tokens in = 'nan'"),
        ({"input_price": "-1"}, r"tokens in = '-1'"),
        ({"output_price": "20000"}, r"tokens out = 20000.0: .*less than or equal to 10000"),
        ({"requests_a_minute": "0"}, r"Row 2 \(other\), Requests a minute = 0: .*greater than or equal to 1"),
        ({"requests_a_minute": "1.5"}, r"Requests a minute = '1\.5': give a whole number"),
        ({"requests_a_day": ""}, r"Requests a day is empty"),
        ({"tokens_a_minute": "1,00"}, r"Tokens a minute = '1,00'"),
        ({"model": ""}, r"Row 2, Model is empty: .*or remove the row"),
        ({"model": "gemini-x"}, r"'gemini-x' stands there twice"),
    ],
)
def test_what_cannot_be_saved_names_row_field_and_value(
    context: Context, change: dict[str, str], text: str
) -> None:
    write_terms(context.folder.judges, DEFAULT)
    with pytest.raises(UserError, match=text):
        judge_desk.read_table(table(ROW, {**ROW, "model": "other", **change}), 10, "UTC")
    message, html = judge_desk.save_table(context, table(ROW, {**ROW, "model": "other", **change}), 10, "UTC")
    assert 'role="alert"' in message
    assert html == "", "what was typed stays"
    assert read_terms(context.folder.judges) == DEFAULT


@pytest.mark.parametrize(
    ("money", "zone", "text"),
    [
        (None, "UTC", "Most money a day is empty"),
        (0, "UTC", "Most money a day = 0: .*greater than 0"),
        (10, "Mars", "Days begin in = 'Mars': give a time zone"),
        (10, None, "Days begin in = ''"),
    ],
)
def test_money_and_time_zone_are_checked(money: float | None, zone: str | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        judge_desk.read_table(table(ROW), money, zone)


def test_many_errors_are_told_in_part() -> None:
    rows = [{**ROW, "model": f"m{number}", "input_price": "free"} for number in range(9)]
    with pytest.raises(UserError, match="And 4 more"):
        judge_desk.read_table(table(*rows), 10, "UTC")


def test_a_models_name_is_text_and_not_html() -> None:
    evil = DEFAULT.models[0].model_copy(update={"model": '"><script>x</script>'})
    assert "<script>" not in judge_views.prices(Terms(models=(evil,)))


def test_today_tells_requests_tokens_money_and_what_is_closed(context: Context) -> None:
    assert "Nothing was asked today" in judge_desk.show_today(context)
    terms = read_terms(context.folder.judges)
    ledger = Ledger(context.folder.judges)
    hold = ledger.reserve("job-1", Budget(5.0), terms, "gemini-2.5-flash", 3000, 0.5)
    assert isinstance(hold, Hold)
    assert "$0.5000 set aside" in judge_desk.show_today(context)
    ledger.settle(hold, 4321, 0.25)
    ledger.close_until("gemini-2.5-flash", time.time() + 5000, "the day's quota <is> used up", "day")
    found = judge_desk.show_today(context)
    for words in ("$0.2500</b> of $10.00", "1 of 10,000", "4,321", "UTC: the day&#x27;s quota &lt;is&gt; used up"):
        assert words in found, words
    write_terms(context.folder.judges, Terms(models=DEFAULT.models[:1]))
    assert "gemini-2.5-flash" in judge_desk.show_today(context), "its row was removed; what it took is told"


def test_a_table_that_cannot_be_read_is_told(context: Context) -> None:
    context.folder.judges.mkdir(parents=True, exist_ok=True)
    (context.folder.judges / "terms.json").write_text("{", encoding="utf-8")
    assert judge_desk.table(context)[0] is None
    assert "remove it for the defaults" in judge_desk.show_today(context)


# --- rubrics ---


def edited(context: Context, base: str = "plumb-1", **changes: str) -> list[str]:
    texts = judge_desk.draft(context, base)
    for path, text in changes.items():
        texts[judge_desk.FIELDS.index(path.replace("__", "."))] = text
    return texts


def test_a_rubric_is_shown_with_definitions_and_anchors(context: Context) -> None:
    version, html = judge_desk.open_rubric(context, "plumb-1")
    assert version == "plumb-1"
    rubric = load_rubric("plumb-1", context.folder.judges)
    for metric, described in rubric.metrics.items():
        assert metric.capitalize() in html
        assert described.anchors[3].split(".")[0] in html
    assert 'data-url="?rubric=plumb-1"' in html
    assert "As YAML" in html


def test_an_edit_makes_a_new_version_and_leaves_the_old_one(context: Context) -> None:
    before = load_rubric("plumb-1", context.folder.judges)
    texts = edited(context, coherence__2="Half <clear>.")
    assert texts[0] == "plumb-2"
    made = judge_desk.save_draft(context, "plumb-1", texts)
    assert made.metrics["coherence"].anchors[2] == "Half <clear>."
    assert load_rubric("plumb-1", context.folder.judges) == before
    assert judge_desk.versions(context) == ["plumb-1", "plumb-2"]
    assert "Half &lt;clear&gt;." in judge_desk.open_rubric(context, "plumb-2")[1]
    assert judge_desk.draft(context, "plumb-1")[0] == "plumb-3"
    with pytest.raises(Conflict, match="plumb-3"):
        judge_desk.save_draft(context, "plumb-1", edited(context, version="plumb-2", guide="Another."))
    assert load_rubric("plumb-2", context.folder.judges) == made


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Nothing differs from plumb-1"),
        ({"verbosity__3": "  "}, "Empty: Verbosity: what 3 stands for"),
        ({"helpfulness__definition": "", "guide": ""}, "Empty: Guide; Helpfulness: definition"),
        ({"version": "My Rubric"}, "version = 'My Rubric'.*small letters"),
        ({"version": "../../evil", "guide": "x"}, "small letters"),
        ({"correctness__0": "x" * 3000}, "correctness.*at most 2000"),
    ],
)
def test_a_draft_that_cannot_be_kept_says_why(context: Context, changes: dict[str, str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        judge_desk.save_draft(context, "plumb-1", edited(context, **changes))
    assert len(list_rubrics(context.folder.judges)) == 1


def test_an_address_with_a_rubric_that_is_not_there_opens_another(context: Context) -> None:
    assert judge_desk.rubric_by({"rubric": "plumb-2"}, "plumb-1") == ("plumb-2", True)
    assert judge_desk.rubric_by({}, "plumb-1") == ("plumb-1", False)
    version, html = judge_desk.open_rubric(context, "nope")
    assert version == "plumb-1"
    assert "There is no rubric &#x27;nope&#x27;" in html
    assert "data-url" not in html
    assert "is no version" in judge_desk.open_rubric(context, "../x")[1]
    with pytest.raises(NotFound):
        judge_desk.draft(context, "nope")


def test_a_spoiled_file_is_told_and_the_others_stay(context: Context) -> None:
    folder = context.folder.judges / "rubrics"
    folder.mkdir(parents=True)
    (folder / "ours.yaml").write_text("version: ours\n", encoding="utf-8")
    version, html = judge_desk.open_rubric(context, "ours")
    assert version == "plumb-1"
    assert html.count('role="alert"') == 1
    assert "ours" in html


# --- the judge of the key J ---


def raw_of(**values: Any) -> list[Any]:
    return [values.get(control.path, shown(control, control.default)) for control in judge_desk.desk_controls()]


def choose(context: Context, **values: Any) -> JudgeConfig:
    return judge_desk.save_desk(context, judge_desk.desk_controls(), raw_of(**values))


def test_the_judge_of_the_key_is_chosen_and_kept(context: Context) -> None:
    assert judge_desk.desk_values(context)[0]["judge"] == "gemini"
    choose(
        context, judge="gemini", model="gemini-2.5-pro", mode="alone", checklists=True, budget=0.5, order_seed=7.0
    )
    kept = read_desk(context.folder)
    assert (kept.model, kept.mode, kept.checklists, kept.budget) == ("gemini-2.5-pro", "alone", True, 0.5)
    values, problem = judge_desk.desk_values(context)
    assert problem == ""
    assert values["order_seed"] == 7
    assert set(values) == {control.path for control in judge_desk.desk_controls()}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"judge": "gemini", "budget": 0}, "budget = 0: .*greater than 0"),
        ({"judge": "gemini", "model": "unheard-of"}, "'unheard-of' has no row"),
        ({"judge": "gemini", "rubric": "nope"}, "no rubric 'nope'"),
        ({"judge": "gemini", "order_seed": 1.5}, "order_seed = 1.5"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_not_chosen(context: Context, values: dict[str, Any], text: str) -> None:
    with pytest.raises(PlumbError, match=text):
        choose(context, **values)
    assert read_desk(context.folder) == JudgeConfig(judge="gemini")
    message = judge_desk.said_of_desk(context, judge_desk.desk_controls(), raw_of(**values))
    assert 'role="alert"' in message


def test_a_judge_without_a_key_is_kept_and_the_key_asked_for(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = judge_desk.desk_controls()
    assert "GEMINI_API_KEY" in judge_desk.said_of_desk(context, controls, raw_of(judge="gemini"))
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    assert "asks gemini-2.5-flash" in judge_desk.said_of_desk(context, controls, raw_of(judge="gemini"))
    assert "asks easy-vqa-rules" in judge_desk.said_of_desk(context, controls, raw_of(judge="easy-vqa-rules"))


def test_a_desk_file_that_cannot_be_read_is_told_and_can_be_chosen_anew(context: Context) -> None:
    write_desk(context.folder, JudgeConfig(judge="gemini", order_seed=3))
    (context.folder.judges / "desk.json").write_text("{", encoding="utf-8")
    values, problem = judge_desk.desk_values(context)
    assert "choose the judge anew" in problem
    assert values["order_seed"] == 0
    choose(context, judge="easy-vqa-rules")
    assert judge_desk.desk_values(context)[1] == ""


def test_every_offer_and_main_field_has_its_control(context: Context) -> None:
    paths = {control.path for control in judge_desk.desk_controls()}
    assert set(judge_desk.desk_choices(context.settings)) <= paths
    assert set(judge_desk.MAIN) <= paths
    assert not {path for path in paths if path.startswith("samples")}


# --- the page ---


def handlers(context: Context) -> dict[str, Any]:
    built = page.build(context)
    return {getattr(fn.fn, "__name__", ""): fn for fn in built.fns.values() if fn.fn is not None}


def test_every_event_of_the_page_has_a_concurrency_limit(context: Context) -> None:
    built = page.build(context)
    events = [fn for fn in built.fns.values() if fn.fn is not None]
    assert events
    assert all(isinstance(fn.concurrency_limit, int) and fn.concurrency_limit > 1 for fn in events)


def test_what_the_page_opens_with_fits_its_outputs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A component that is answered and is no output would break the page's opening."""
    monkeypatch.setenv("GEMINI_API_KEY", SECRET)
    opening = handlers(context)["opening"]

    answered = opening.fn(SimpleNamespace(query_params={"rubric": "plumb-1"}))
    assert set(answered) <= set(opening.outputs)
    assert SECRET not in repr(list(answered.values()))
    assert any("pj-prices" in str(value) for value in answered.values())


def test_editing_and_saving_a_rubric_fit_their_outputs(context: Context) -> None:
    found = handlers(context)
    editing, saving = found["editing"], found["saving"]
    assert set(editing.fn("plumb-1")) <= set(editing.outputs)
    assert set(editing.fn("nope")) <= set(editing.outputs)
    refused = saving.fn("plumb-1", *judge_desk.draft(context, "plumb-1"))
    assert set(refused) <= set(saving.outputs)
    made = saving.fn("plumb-1", *edited(context, guide="Look twice."))
    assert set(made) <= set(saving.outputs)
    assert judge_desk.versions(context) == ["plumb-1", "plumb-2"]
    offered = [value for value in made.values() if isinstance(value, dict) and value.get("choices")]
    assert len(offered) == 2, "the list of versions and the form of the key J"


def test_saving_the_table_fits_its_outputs(context: Context) -> None:
    saving = handlers(context)["saving_table"]
    assert set(saving.fn(table(ROW), 1.0, "UTC", "")) <= set(saving.outputs)
    assert set(saving.fn(table({**ROW, "model": ""}), 1.0, "UTC", "")) <= set(saving.outputs)


def test_a_tab_of_before_overwrites_no_cap(context: Context) -> None:
    write_terms(context.folder.judges, DEFAULT)
    here, there = handlers(context), handlers(context)
    request = SimpleNamespace(query_params={})

    def mark_in(answered: dict[Any, Any]) -> str:
        return next(str(value) for part, value in answered.items() if isinstance(part, gr.State))

    before = mark_in(here["opening"].fn(request))
    assert mark_in(there["opening"].fn(request)) == before
    mark = mark_in(here["saving_table"].fn(table(ROW), 1.0, "UTC", before))
    assert mark != before
    refused = there["saving_table"].fn(table(ROW), 500.0, "UTC", before)
    assert any("Somebody has changed prices or limits" in str(value) for value in refused.values())
    assert read_terms(context.folder.judges).money_a_day == 1.0
    here["saving_table"].fn(table(ROW), 2.0, "UTC", mark)
    assert read_terms(context.folder.judges).money_a_day == 2.0, "whoever saved last goes on from there"
    (context.folder.judges / "terms.json").write_text("{")
    unread = mark_in(here["opening"].fn(request))
    here["saving_table"].fn(table(ROW), 3.0, "UTC", unread)
    assert read_terms(context.folder.judges).money_a_day == 3.0, "a table that could not be read is written anew"


def test_a_model_that_is_closed_for_the_day_is_asked_again(context: Context) -> None:
    write_terms(context.folder.judges, DEFAULT)
    ledger = Ledger(context.folder.judges)
    ledger.close_until("gemini-2.5-flash", time.time() + 3600, "quota of the day", "day")
    ledger.close_until("<b>", time.time() + 30, "too many a minute", "minute")
    shown_today = judge_desk.show_today(context)
    assert shown_today.count("data-open=") == 1, "a minute passes by itself"
    assert 'data-open="gemini-2.5-flash"' in shown_today
    found = handlers(context)["opening_again"]
    event = SimpleNamespace(_data={"model": "gemini-2.5-flash"})
    message, today = found.fn(event)
    assert "is asked again" in message
    assert "data-open" not in today
    assert "is not closed any more" in found.fn(event)[0]
    assert ledger.tell(read_terms(context.folder.judges)).models.keys() == {"<b>"}


def test_the_editor_has_a_labelled_field_for_each_text(context: Context) -> None:
    built = page.build(context)
    labels = [block.label for block in built.blocks.values() if isinstance(block, gr.Textbox)]
    for path in judge_desk.FIELDS:
        assert labels.count(judge_desk.field_title(path)) == 1, path
