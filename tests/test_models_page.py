"""The Models page: what is opened, what can be done with it, what deletion takes along."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from factories import World
from jobs.configs import parse_config
from jobs.freezing import freeze
from jobs.merged import Merged, merged_root
from storage import jobs as store
from storage.adapters import add_adapter, delete_adapter, get_adapter, keep_adapter, list_adapters, uses_of
from storage.candidates import add_generated
from storage.chats import add_turn, start_conversation
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.records import Adapter, Job
from storage.upkeep import check
from workbench import model_desk, model_views
from workbench.context import Context
from workbench.model_cards import body_of, card_html, download
from workbench.model_desk import Address, read_address
from workbench.navigation import header
from workbench.pages import models as page

CARD = "---\nlibrary_name: peft\n---\n\n# colours\n\nTrained on **shapes**. <script>alert(1)</script>\n"


def frozen(world: World, name: str = "shapes") -> int:
    for number in (1, 2, 3, 4):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, "ada", one.id, other.id)
    return freeze(world.db, "ada", name, ("accepted", "proposed"), heldout_percent=25).id


def trained(
    world: World,
    name: str = "colours",
    start: int | None = None,
    dataset: int | None = None,
    base: str = "demo",
    content: str = "",
    status: JobStatus = JobStatus.DONE,
    metrics: dict[str, float] | None = None,
) -> Adapter:
    """An adapter as a training leaves it: run folder, kept files, row."""
    config = parse_config("dpo", {"dataset": "shapes", "model": base, "start_adapter": start}).model_dump(
        mode="json"
    )
    job = store.add_job(
        world.db,
        kind="dpo",
        config=config,
        user="ada",
        slot_kind="device",
        dataset_id=dataset,
        adapter_id=start,
    )
    ended(world, job, status)
    folder = world.folder.run(job.id)
    (folder / "adapter").mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "log.txt").write_text("what was written\n")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes((content or f"weights {job.id}").encode())
    (folder / "adapter" / "README.md").write_text(CARD)
    attempt = store.start_attempt(world.db, job.id)
    store.add_metrics(world.db, attempt.id, 30, metrics or {})
    sha256, size = keep_adapter(world.folder, folder / "adapter")
    add_adapter(world.db, store.get_job(world.db, job.id), name, sha256, size, base, "dpo")
    return list_adapters(world.db)[0]


def ended(world: World, job: Job, status: JobStatus) -> None:
    store.move(world.db, job.id, JobStatus.STARTING)
    if status is not JobStatus.STARTING:
        store.move(world.db, job.id, JobStatus.RUNNING)
        if status is not JobStatus.RUNNING:
            store.move(world.db, job.id, status)


def merged(world: World, name: str, of: Adapter) -> Path:
    folder = merged_root(world.folder.models) / name
    folder.mkdir(parents=True)
    made = Merged(of.base_model, of.id, of.name, of.sha256, "bfloat16", 9, "2026-11-23T02:00:00.000+00:00")
    (folder / "plumb.json").write_text(made.text())
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(f"# {name}\n")
    return folder


def files_of(world: World, adapter: Adapter) -> Path:
    return world.folder.adapters / adapter.sha256


# --- what is shown ---


def test_with_no_adapter_it_says_what_to_do(context: Context) -> None:
    found = model_desk.models(context, Address())
    drawn = model_views.family(found)
    assert "/jobs?kind=dpo" in drawn
    assert "/pairs" in drawn
    assert model_views.opened(found) == model_views.card(found) == ""
    assert page.Selected.of(found) == page.Selected()


def test_the_newest_is_opened_with_all_that_is_known_of_it(world: World, context: Context) -> None:
    dataset = frozen(world)
    first = trained(world, "first", dataset=dataset)
    adapter = trained(
        world,
        "<second>",
        start=first.id,
        dataset=dataset,
        metrics={
            "heldout_reward_accuracy": 0.8125,
            "report_reward_accuracy": 0.75,
            "heldout_kl": 0.25,
            "loss": 9.9,
        },
    )
    found = model_desk.models(context, Address())
    assert found.selected == f"adapter:{adapter.id}"
    drawn = model_views.opened(found)
    assert "<second>" not in drawn
    for part in (
        "&lt;second&gt;",
        f'href="/jobs?job={adapter.job_id}"',
        f'href="/models?adapter={first.id}"',
        f'href="/chat?adapter={adapter.id}"',
        f'href="/jobs?kind=dpo&amp;start_adapter={adapter.id}&amp;model=demo"',
        f'href="/jobs?kind=generate&amp;adapter={adapter.id}&amp;model=demo"',
        "/models?view=runs&amp;dataset=shapes",
        "ada · pairs by hand (a person): 4 pairs",
    ):
        assert part in drawn, part
    row = re.search(r"Accuracy</th><td>([^<]*)</td><td>([^<]*)</td>", drawn)
    assert row is not None
    assert row.groups() == ("81.2%", "75.0%")
    assert re.search(r"KL</th><td>0.25</td><td>–</td>", drawn)
    assert "9.9" not in drawn
    assert "81.2%" in model_views.family(found)
    assert page.Selected.of(found).what == adapter.id


def test_an_address_opens_an_adapter_or_merged_weights(world: World, context: Context) -> None:
    first, second = trained(world, "first"), trained(world, "second")
    folder = merged(world, "whole", first)
    assert model_desk.models(context, read_address(f"?adapter={first.id}")).selected == f"adapter:{first.id}"
    found = model_desk.models(context, read_address("?merged=whole"))
    assert page.Selected.of(found).what == "whole"
    drawn = model_views.opened(found)
    assert str(folder) in drawn
    assert f'href="/models?adapter={first.id}"' in drawn
    assert f"merged:{folder.name}" == found.selected
    for asked in ("?adapter=99", "?merged=gone", "?merged=../adapters"):
        gone = model_desk.models(context, read_address(asked))
        assert page.Selected.of(gone) == page.Selected()
        assert "There " in model_views.family(gone)
        assert 'data-key="adapter:2"' in model_views.family(gone)
    assert second.id == 2


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({}, "does not name its raters"),
        ({"statuses": ["accepted"]}, "accepted pairs; the data set"),
        ({"raters": None}, "does not name its raters"),
        ({"raters": ["strange", 3]}, "does not name its raters"),
        (
            {
                "raters": [
                    {"name": "<j>", "version": "plumb-1", "mode": "together", "kind": "judge", "judgements": 1200}
                ]
            },
            "&lt;j&gt; · plumb-1 · together (judge): 1,200 judgements",
        ),
        (
            {"raters": [{"name": "ada", "kind": "person"}, {"name": "bob", "kind": "person"}]},
            "ada (a person)<br>bob",
        ),
    ],
)
def test_where_labels_come_from(rule: dict[str, Any], words: str) -> None:
    assert words in model_views.labels(rule)


def test_a_card_is_read_and_none_of_its_html(world: World, context: Context) -> None:
    trained(world)
    drawn = model_views.card(model_desk.models(context, Address()))
    assert "<strong>shapes</strong>" in drawn
    assert "library_name" not in re.sub(r'href="[^"]*"', "", drawn)
    assert "<script" not in drawn
    link = re.search(r'download="([^"]*)" href="data:text/markdown;charset=utf-8;base64,([^"]*)"', drawn)
    assert link is not None
    assert link.group(1) == "colours.md"
    assert base64.b64decode(link.group(2)).decode() == CARD, "the file is the card as it is"


@pytest.mark.parametrize(
    "bad",
    [
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "![x](http://127.0.0.1:9/pixel.png)",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        '<a href="x" onclick="alert(1)">y</a>',
        "|a|\n|---|\n|<script>alert(1)</script>|",
        "```html\n<script>alert(1)</script>\n```",
    ],
)
def test_cards_cannot_run_or_load_anything(bad: str) -> None:
    drawn = card_html(f"# x\n\n{bad}\n")
    assert not re.search(r"<(script|img|iframe)", drawn)
    assert not re.search(r'<[^>]*(onerror|onclick|href="(javascript|data):)', drawn)


def test_front_matter_alone_is_cut() -> None:
    assert body_of("---\na: b\n---\n# x") == "# x"
    assert body_of("# x\n---\nrest\n---\n") == "# x\n---\nrest\n---\n"
    assert body_of("---\nnever closed") == "---\nnever closed"
    assert card_html("  ") == ""
    assert 'download="a&quot;b"' in download("x", 'a"b', "text/csv", "Save")


def test_a_missing_card_and_missing_files_are_no_error(world: World, context: Context) -> None:
    adapter = trained(world)
    (files_of(world, adapter) / "README.md").write_bytes(b"\xff\xfe")
    assert "without a card" in model_views.card(model_desk.models(context, Address()))
    import shutil

    shutil.rmtree(files_of(world, adapter))
    assert model_desk.models(context, Address()).opened is not None


# --- what is done ---


@pytest.mark.usefixtures("no_supervisor")
def test_merging_and_pushing_are_jobs(world: World, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(world, "my colours")
    found = model_desk.models(context, Address())
    assert found.opened is not None
    name = model_desk.suggested_name(found.opened)
    assert name == "my-colours"
    world.db.conn.execute(
        "UPDATE jobs SET config = json_set(config, '$.system_prompt', 'Be brief.') WHERE id = ?", [adapter.job_id]
    )
    job = model_desk.merge(context, "ada", adapter.id, f" {name} ")
    assert (job.config["system_prompt"], job.config["image_fit"]) == ("Be brief.", "auto")
    assert (job.kind, job.config["name"], job.config["model"], job.adapter_id) == (
        "merge",
        name,
        "demo",
        adapter.id,
    )
    assert (world.folder.run(job.id) / "data" / "adapters" / adapter.sha256).is_dir()
    monkeypatch.setenv("HF_TOKEN", "hf_secretOfTheTests")
    job = model_desk.push(context, "ada", adapter.id, " ada/colours ", True)
    assert (job.kind, job.config["repository"], job.slot_kind) == ("push", "ada/colours", "network")
    merged(world, "whole", adapter)
    job = model_desk.push(context, "ada", "whole", "ada/colours", False)
    assert (job.config["merged"], job.config["adapter"], job.config["private"]) == ("whole", None, False)
    with pytest.raises(UserError, match="repository"):
        model_desk.push(context, "ada", adapter.id, "x", True)
    with pytest.raises(UserError, match="give owner/name"):
        model_desk.push(context, "ada", adapter.id, "no owner", True)
    with pytest.raises(NotFound, match="no merged weights named 'gone'"):
        model_desk.push(context, "ada", "gone", "ada/colours", True)
    with pytest.raises(UserError, match="name"):
        model_desk.merge(context, "ada", adapter.id, "..")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN"):
        model_desk.push(context, "ada", adapter.id, "ada/colours", True)
    with pytest.raises(NotFound):
        model_desk.merge(context, "ada", 99, "")
    for file in world.folder.root.rglob("*"):
        assert not file.is_file() or b"hf_secretOfTheTests" not in file.read_bytes(), file


def test_a_missing_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN" in model_views.hint(model_desk.token_hint())
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert model_views.hint(model_desk.token_hint()) == ""


def test_a_name_is_a_label(world: World, context: Context) -> None:
    adapter = trained(world)
    assert model_desk.rename(context, adapter.id, "  shapes, β 0.1 ").name == "shapes, β 0.1"
    assert get_adapter(world.db, adapter.id).sha256 == adapter.sha256
    for bad in ("", "   ", "x" * 81, "two\nlines"):
        with pytest.raises(UserError, match="1 to 80 characters"):
            model_desk.rename(context, adapter.id, bad)
    with pytest.raises(NotFound):
        model_desk.rename(context, 99, "x")
    assert get_adapter(world.db, adapter.id).name == "shapes, β 0.1"


def test_deletion_takes_files_and_leaves_the_job(world: World, context: Context) -> None:
    kept, adapter = trained(world, "kept"), trained(world)
    generate = store.add_job(
        world.db,
        kind="generate",
        config={"adapter": adapter.id},
        user="ada",
        slot_kind="device",
        adapter_id=adapter.id,
    )
    ended(world, generate, JobStatus.FAILED)
    question = model_views.deletion(*model_desk.deletion(context, adapter.id))
    assert "cannot be undone" in question
    assert f"#{adapter.job_id}" in question
    assert model_desk.delete(context, adapter.id) == "The adapter colours is deleted."
    assert [one.id for one in list_adapters(world.db)] == [kept.id]
    assert not files_of(world, adapter).exists()
    assert files_of(world, kept).is_dir()
    run = world.folder.run(adapter.job_id)
    assert not (run / "adapter").exists(), "the same bytes under a second name would keep the disk full"
    assert (run / "log.txt").exists()
    again = store.get_job(world.db, generate.id)
    assert (again.adapter_id, again.config["adapter"]) == (None, adapter.id)
    assert not [finding for finding in check(world.db, world.folder) if finding.kind == "foreign key"]
    with pytest.raises(NotFound):
        model_desk.delete(context, adapter.id)


def test_files_that_another_adapter_has_too_stay(world: World, context: Context) -> None:
    one, twin = trained(world, "one", content="same"), trained(world, "twin", content="same")
    assert one.sha256 == twin.sha256
    assert "its files stay" in model_views.deletion(*model_desk.deletion(context, one.id))
    assert "Its files stay" in model_desk.delete(context, one.id)
    assert files_of(world, twin).is_dir()
    assert delete_adapter(world.db, world.folder, twin.id) is True
    assert not files_of(world, twin).exists()


def used_by_a_queued_job(world: World, adapter: Adapter) -> None:
    world.db.conn.execute("UPDATE jobs SET adapter_id = ? WHERE id = ?", [adapter.id, world.job("generate").id])


def used_by_the_chat_model(world: World, adapter: Adapter) -> None:
    world.job("serve", adapters=[77, adapter.id])


def used_by_its_own_training(world: World, adapter: Adapter) -> None:
    world.db.conn.execute("UPDATE jobs SET status = 'running' WHERE id = ?", [adapter.job_id])


def used_by_a_descendant(world: World, adapter: Adapter) -> None:
    trained(world, "further", start=adapter.id)


def used_by_a_candidate(world: World, adapter: Adapter) -> None:
    job = world.job("generate")
    sample = world.sample(9)
    add_generated(
        world.db, job_id=job.id, sample_id=sample, number=0, text="x", model="demo", adapter_id=adapter.id
    )
    store.move(world.db, job.id, JobStatus.STOPPED)


def used_by_the_chat(world: World, adapter: Adapter) -> None:
    talk = start_conversation(world.db, "ada", {})
    add_turn(
        world.db,
        talk,
        0,
        "assistant",
        [{"type": "text", "text": "x"}],
        column_number=1,
        model="demo",
        adapter_id=adapter.id,
    )


def used_by_merged_weights(world: World, adapter: Adapter) -> None:
    trained(world, "on the whole", base=str(merged(world, "whole", adapter)))


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (used_by_a_queued_job, "needs it and has not ended"),
        (used_by_the_chat_model, "needs it and has not ended"),
        (used_by_its_own_training, "needs it and has not ended"),
        (used_by_a_descendant, "adapter #2 was trained further from it"),
        (used_by_a_candidate, "1 candidate was drawn with it"),
        (used_by_the_chat, "1 answer of the chat came from it"),
        (used_by_merged_weights, "on the whole was trained on full weights"),
    ],
)
def test_what_stands_on_an_adapter_keeps_it(world: World, context: Context, use: Any, words: str) -> None:
    adapter = trained(world)
    assert uses_of(world.db, adapter).free
    use(world, adapter)
    for act in (model_desk.deletion, model_desk.delete):
        with pytest.raises(Conflict, match=re.escape(words)):
            act(context, adapter.id)
    assert get_adapter(world.db, adapter.id) == adapter
    assert files_of(world, adapter).is_dir()
    assert (world.folder.run(adapter.job_id) / "adapter").is_dir()


# --- the page ---


def test_the_page_stands_between_jobs_and_chat() -> None:
    names = re.findall(r'href="(/[a-z]*)"', header("models"))
    assert names.index("/jobs") + 1 == names.index("/models") == names.index("/chat") - 1


def test_every_event_of_the_page_has_a_concurrency_limit(context: Context) -> None:
    built = page.build(context)
    events = [fn for fn in built.fns.values() if fn.fn is not None]
    assert len(events) >= 7
    assert all(isinstance(fn.concurrency_limit, int) and fn.concurrency_limit > 1 for fn in events)


def test_nothing_is_done_to_nothing() -> None:
    with pytest.raises(PlumbError, match="Choose an adapter"):
        page._adapter(page.Selected(merged="whole"))
    assert page.Selected(adapter=3).what == 3
