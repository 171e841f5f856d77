"""Every benchmark behind the one contract: its files as items, its requests to a judge, its grades."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import benchmark_files as make
from benchmark_files import images_of, lines, scratch, shared, value
from jobs.benchmarks import alpaca_eval, alpaca_items, mmbench_items
from jobs.benchmarks.contract import Item
from jobs.benchmarks.files import BadFile
from jobs.benchmarks.measures import by_category, figure
from jobs.benchmarks.registry import BENCHMARKS, half_of
from jobs.item_rows import item_of, stored

#: Those that need official files.
OFFICIAL = ("pope", "mmbench", "mm-vet", "llava-bench", "mt-bench", "alpaca-eval", "ifeval")
NAMES = list(BENCHMARKS)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | None]:
    """A small official file of each benchmark."""
    pope = make.pope_folder(tmp_path / "pope")
    for name in ("a.jpg", "b.jpg"):
        make.picture(pope / name)
    return {
        **dict.fromkeys(BENCHMARKS),
        "pope": pope,
        "mmbench": make.mmbench_file(tmp_path / "mmbench.tsv", [make.mmbench_row(5), make.mmbench_row(6)]),
        "mm-vet": make.mm_vet_folder(tmp_path / "mm-vet"),
        "llava-bench": make.llava_folder(tmp_path / "llava"),
        "mt-bench": make.mt_folder(tmp_path / "mt"),
        "alpaca-eval": make.alpaca_file(tmp_path / "alpaca" / "model_outputs.json"),
        "ifeval": make.ifeval_file(tmp_path / "input_data.jsonl"),
    }


#: A reply that each judge may give, the best there is.
GOOD = {
    "mm-vet": "1.0",
    "llava-bench": "5 10\nBetter.",
    "mt-bench": "Rating: [[10]]",
    "mmbench": "B",
    "alpaca-eval": "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]",
}


def test_the_nine_are_there() -> None:
    assert {*OFFICIAL, "easy-vqa", "easy-pope"} <= set(BENCHMARKS)
    for name, one in BENCHMARKS.items():
        assert one.name == name
        assert one.headline in one.measures
        assert one.grade or (one.requests and one.grade_replies)
        assert bool(one.requests) == bool(one.grade_replies)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_whole(name: str, files: dict[str, Path | None], tmp_path: Path) -> None:
    """Ids once; a question at the end; files that exist; JSON that comes back as it was; the same again."""
    read = BENCHMARKS[name].read
    items = read(files[name], None, scratch(tmp_path))[:400]
    assert not [one for one, number in Counter(item.id for item in items).items() if number > 1]
    assert all(item.messages[-1]["role"] == "user" for item in items)
    assert all(one.is_file() for one in images_of(items))
    assert bool(images_of(items)) == (BENCHMARKS[name].skill == "vision")
    assert [item_of(json.loads(json.dumps(stored(item)))) for item in items[:5]] == list(items[:5])
    again = read(files[name], None, scratch(tmp_path))[:400]
    assert items == again
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.unit or item.id, []).append(place)
    assert all(found == list(range(found[0], found[-1] + 1)) for found in places.values()), "units stand together"


ODD = {
    "empty": "",
    "endless": "so " * 33_334,
    "another language": "这是一个答案。",
    "line separator": "yes\u2028no",
    "braces": "{answer} {output_2} %s {",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ODD.values(), ids=ODD.keys())
def test_odd_answers_are_graded_and_never_lost(
    name: str, answer: str, files: dict[str, Path | None], tmp_path: Path
) -> None:
    benchmark = BENCHMARKS[name]
    items = benchmark.read(files[name], None, scratch(tmp_path))[:60]
    answers = {item.id: [answer] * (1 + len(item.following)) for item in items}
    if benchmark.grade:
        graded = benchmark.grade(items, answers)
        assert all(one.sums is not None and one.characters == len(answer) for one in graded)
    if benchmark.requests and benchmark.grade_replies:
        asked = benchmark.requests(items, answers)
        assert len({one.id for one in asked}) == len(asked)
        assert all(answer in one.prompt for one in asked)
        graded = benchmark.grade_replies(items, answers, {one.id: GOOD[name] for one in asked})
        assert all(one.sums is not None for one in graded), [one.why for one in graded]


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("reply", ["", "I cannot grade this.", "∞" * 5000, "[[", "12 13", "\u2028"])
def test_a_reply_that_cannot_be_read_is_a_failure_that_says_so(
    name: str, reply: str, files: dict[str, Path | None], tmp_path: Path
) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.requests
    assert benchmark.grade_replies
    items = benchmark.read(files[name], None, scratch(tmp_path))
    answers = {item.id: ["both of them", "and more"][: 1 + len(item.following)] for item in items}
    asked = benchmark.requests(items, answers)
    assert asked
    first = asked[0].id
    replies = {one.id: GOOD[name] for one in asked} | {first: reply}
    graded = benchmark.grade_replies(items, answers, replies)
    assert sum(one.sums is None for one in graded) == 1
    failed = next(one for one in graded if one.sums is None)
    assert failed.characters
    assert "reply" in failed.why
    assert len(failed.why) < 200
    missing = benchmark.grade_replies(items, answers, {k: v for k, v in replies.items() if k != first})
    assert [one.why for one in missing if one.sums is None] == ["the judge gave no reply"]


@pytest.mark.parametrize("name", NAMES)
def test_an_item_without_an_answer_is_a_failure(name: str, files: dict[str, Path | None], tmp_path: Path) -> None:
    """And fewer answers than questions are no reason to stop."""
    benchmark = BENCHMARKS[name]
    items = benchmark.read(files[name], None, scratch(tmp_path))[:40]
    answers = {item.id: ["yes", "yes"][: 1 + len(item.following)] for item in items[1:]}
    if benchmark.grade:
        graded = benchmark.grade(items, answers)
        assert sum(one.sums is None for one in graded) == 1
        assert all(one.why for one in graded if one.sums is None)
    if benchmark.requests and benchmark.grade_replies:
        asked = benchmark.requests(items, answers)
        assert all(one.item != items[0].id for one in asked)
        graded = benchmark.grade_replies(items, answers, {one.id: GOOD[name] for one in asked})
        assert sum(one.sums is None for one in graded) == 1 + len(items[0].following)


def test_missing_files_say_what_is_needed(tmp_path: Path) -> None:
    for benchmark in (BENCHMARKS[name] for name in OFFICIAL):
        with pytest.raises(BadFile, match="needs files: give the path of"):
            benchmark.read(None, None, tmp_path)
        with pytest.raises(BadFile, match="nothing is not there"):
            benchmark.read(tmp_path / "nothing", None, tmp_path)


def test_the_halves_are_fixed_and_keep_units_whole() -> None:
    halves = [half_of(str(number), "") for number in range(1000)]
    assert 450 < halves.count("selection") < 550
    assert half_of("1/shuffled", "1") == half_of("1", "1") == half_of("1", "")
    # Fixed for good: figures of last year's selection half must not be of this year's reporting half.
    assert "".join(half[0] for half in halves[:12]) == "ssrsrrrsrsrs"


# --- POPE ---


def test_pope_asks_three_sets_and_reports_the_mean(tmp_path: Path, files: dict[str, Path | None]) -> None:
    pope = BENCHMARKS["pope"]
    assert pope.grade
    items = pope.read(files["pope"], None, tmp_path)
    assert [item.id for item in items[:4]] == ["random/1", "random/2", "popular/1", "popular/2"]
    assert {item.unit for item in items[:6]} == {"a.jpg"}
    text = "Is there a fork in the image?\nAnswer the question using a single word or phrase."
    assert items[0].messages[-1]["content"][1] == {"type": "text", "text": text}
    answers = {item.id: [item.reference[0]] for item in items}
    answers["random/1"] = ["no"]  # of random: TP 1, FN 1: F1 2/3; of the others: 1
    graded = pope.grade(items, answers)
    assert value(graded, pope) == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)
    assert value(graded, pope, "accuracy") == pytest.approx(100 * 11 / 12)
    assert value(graded, pope, "recall") == pytest.approx(100 * 5 / 6)
    assert value(graded, pope, "yes ratio") == pytest.approx(100 * 5 / 12)
    parts = by_category(graded, pope.measures["F1"])
    assert parts["random"].value == pytest.approx(100 * 2 / 3)
    assert parts["popular"].value == pytest.approx(100)


def test_one_set_of_pope_has_its_own_f1(tmp_path: Path, files: dict[str, Path | None]) -> None:
    pope, folder = BENCHMARKS["pope"], files["pope"]
    assert pope.grade
    assert folder
    items = pope.read(folder / "coco_pope_popular.json", None, tmp_path)
    assert [item.id for item in items] == [f"popular/{number}" for number in range(1, 5)]
    assert value(pope.grade(items, {item.id: ["yes"] for item in items}), pope) == pytest.approx(100 * 4 / 6)


def test_popes_missing_pictures_are_counted(tmp_path: Path) -> None:
    folder = make.pope_folder(tmp_path / "pope", [f"{n}.jpg" for n in range(6)])
    make.picture(tmp_path / "coco" / "0.jpg")
    read = BENCHMARKS["pope"].read
    with pytest.raises(BadFile, match=r"5 of 6 images are not in .*coco: 1\.jpg, 2\.jpg, 3\.jpg and 2 more"):
        read(folder, tmp_path / "coco", tmp_path)
    with pytest.raises(BadFile, match="6 of 6 images are not in"):
        read(folder, None, tmp_path)
    with pytest.raises(BadFile, match="there is no folder"):
        read(folder, tmp_path / "none", tmp_path)
    outside = make.pope_folder(tmp_path / "bad", ["../secret.jpg"])
    with pytest.raises(BadFile, match="must be within the images' folder"):
        read(outside, None, tmp_path)
    (folder / "coco_pope_popular.json").unlink()
    with pytest.raises(BadFile, match=r"has no coco_pope_popular\.json"):
        read(folder, tmp_path / "coco", tmp_path)


def test_popes_official_files_are_nine_thousand_items(tmp_path: Path) -> None:
    folder = shared("pope")
    rows = [json.loads(line) for line in (folder / "coco_pope_random.json").read_text().splitlines()]
    for name in {row["image"] for row in rows}:
        (tmp_path / name).write_bytes(b"")
    items = BENCHMARKS["pope"].read(folder, tmp_path, tmp_path)
    assert len(items) == 9000
    assert len({item.unit for item in items}) == 500
    assert Counter(item.reference[0] for item in items) == {"yes": 4500, "no": 4500}


# --- MMBench ---


def test_mmbench_makes_rotations_and_decodes_pictures(tmp_path: Path, files: dict[str, Path | None]) -> None:
    mmbench = BENCHMARKS["mmbench"]
    assert mmbench.grade
    items = mmbench.read(files["mmbench"], None, scratch(tmp_path))
    assert [item.id for item in items] == ["5", "1000005", "2000005", "6", "1000006", "2000006"]
    assert [item.extra["options"][item.reference[0]] for item in items] == ["a cup"] * 6
    assert len(set(images_of(items))) == 2
    text = items[0].messages[-1]["content"][1]["text"]
    assert text.startswith(
        "What is on the table?\nA. a fork\nB. a cup\nC. a knife\nAnswer with the option's letter"
    )
    right = {item.id: [item.reference[0]] for item in items}
    assert value(mmbench.grade(items, right), mmbench) == 100
    assert value(mmbench.grade(items, {**right, "1000006": ["C"]}), mmbench) == 50


def test_rotations_that_a_file_has_are_used(tmp_path: Path) -> None:
    first = make.mmbench_row(5)
    turned = [
        make.mmbench_row(1_000_005, A="a cup", B="a knife", C="a fork", answer="A", image="5"),
        make.mmbench_row(2_000_005, A="a knife", B="a fork", C="a cup", answer="C", image="5"),
    ]
    read = BENCHMARKS["mmbench"].read
    items = read(make.mmbench_file(tmp_path / "a.tsv", [first, *turned]), None, scratch(tmp_path))
    assert [(item.id, item.reference) for item in items] == [
        ("5", ("B",)),
        ("1000005", ("A",)),
        ("2000005", ("C",)),
    ]
    with pytest.raises(BadFile, match="3 options and 2 rotations"):
        read(make.mmbench_file(tmp_path / "b.tsv", [first, turned[0]]), None, scratch(tmp_path))
    with pytest.raises(BadFile, match="1 of 1 rows have no answer; those of the test split are secret"):
        read(make.mmbench_file(tmp_path / "c.tsv", [make.mmbench_row(answer="")]), None, scratch(tmp_path))
    broken = make.mmbench_row(image="A" * 80)
    with pytest.raises(BadFile, match="the image of row 5 cannot be read"):
        read(make.mmbench_file(tmp_path / "d.tsv", [broken]), None, scratch(tmp_path))
    with pytest.raises(BadFile, match="is a folder"):
        read(tmp_path, None, scratch(tmp_path))


def test_mmbenchs_judge_is_asked_for_what_rules_cannot_read(tmp_path: Path) -> None:
    mmbench = BENCHMARKS["mmbench"]
    assert mmbench.requests
    assert mmbench.grade
    assert mmbench.grade_replies
    items = mmbench.read(make.mmbench_file(tmp_path / "a.tsv", [make.mmbench_row()]), None, scratch(tmp_path))
    answers = {"5": ["B"], "1000005": ["It is for drinking."], "2000005": ["C."]}
    asked = mmbench.requests(items, answers)
    assert [one.id for one in asked] == ["1000005"]
    assert "A. a cup B. a knife C. a fork\nAnswer: It is for drinking.\n" in asked[0].prompt
    by_rules = mmbench.grade(items, answers)[0]
    assert list(by_rules.sums or ()) == [0, 1]
    assert "1 of its 3 answers name no option" in by_rules.why
    for reply, sums in (("A", (1, 1)), ("Your reply: A", (1, 1)), ("B", (0, 1)), ("Z", (0, 1)), ("A or B", None)):
        assert mmbench.grade_replies(items, answers, {"1000005": reply})[0].sums == sums, reply
    assert mmbench_items.read_reply("D", items[0].extra["options"]) is None, "there is no option D"


# --- LLaVA-Bench, MM-Vet ---


def test_llava_benchs_judge_reads_caption_reference_and_answer(tmp_path: Path) -> None:
    bench, folder = BENCHMARKS["llava-bench"], make.llava_folder(tmp_path / "llava")
    assert bench.requests
    assert bench.grade_replies
    items = bench.read(folder, None, tmp_path)
    asked = bench.requests(items, {"0": ["mine"]})
    assert [one.id for one in asked] == ["0"]
    parts = ("[Context]\nA fork.\nIt is red.\n\n[Question]\nWhat is it?\n\n[Assistant 1]\nreference 0\n\n", "mine")
    assert asked[0].prompt.startswith(
        parts[0] + "[End of Assistant 1]\n\n[Assistant 2]\nmine\n\n[End of Assistant 2]"
    )
    graded = bench.grade_replies(items, {str(n): ["mine"] for n in range(3)}, {"0": "10 5", "1": "8 10", "2": "x"})
    assert value(graded, bench) == pytest.approx(100 * 15 / 18)
    assert [one.unit for one in graded] == ["001.jpg", "001.jpg", "002.jpg"]
    rules = {f"llava_bench_{name}": {"prompt": f"rule of {name}"} for name in ("conv", "detail", "complex")}
    (folder / "rule.json").write_text(json.dumps(rules))
    official = bench.requests(bench.read(folder, None, tmp_path), {"1": ["mine"]})
    assert official[0].prompt.endswith("[System]\nrule of detail\n\n")
    (folder / "rule.json").write_text("{}")
    with pytest.raises(BadFile, match="has no rule llava_bench_complex"):
        bench.read(folder, None, tmp_path)
    (folder / "images" / "002.jpg").unlink()
    (folder / "rule.json").unlink()
    with pytest.raises(BadFile, match=r"1 of 2 images are not in .*002\.jpg"):
        bench.read(folder, None, tmp_path)


def test_mm_vets_judge_completes_a_row(tmp_path: Path) -> None:
    mm_vet, folder = BENCHMARKS["mm-vet"], make.mm_vet_folder(tmp_path / "mm-vet")
    assert mm_vet.requests
    assert mm_vet.grade_replies
    items = mm_vet.read(folder / "mm-vet.json", None, tmp_path)
    asked = mm_vet.requests(items, {"v1_0": ["x = -1"]})
    assert asked[0].prompt.endswith("\nx? | -1 <AND> -5 | x = -1 | ")
    assert "Question | Ground truth | Prediction | Correctness" in asked[0].prompt
    graded = mm_vet.grade_replies(items, {"v1_0": ["a"], "v1_1": ["b"]}, {"v1_0": "0.5", "v1_1": "0.0"})
    assert value(graded, mm_vet) == 25
    assert by_category(graded, mm_vet.measures["score"])["math"].value == 50
    (folder / "prompt.txt").write_text("Question | Correctness")
    assert mm_vet.requests(mm_vet.read(folder, None, tmp_path), {"v1_0": ["y"]})[0].prompt.startswith(
        "Question | C"
    )


# --- MT-Bench ---


def test_mt_benchs_turns_are_judged_one_by_one(tmp_path: Path) -> None:
    bench = BENCHMARKS["mt-bench"]
    assert bench.requests
    assert bench.grade_replies
    items = bench.read(make.mt_folder(tmp_path / "mt"), None, tmp_path)
    assert [(item.temperature, item.reference) for item in items] == [(0.7, ()), (0.0, ("two", "three"))]
    asked = bench.requests(items, {"81": ["a1", "a2"], "111": ["b1"]})
    assert [(one.id, one.item) for one in asked] == [("81/1", "81"), ("81/2", "81"), ("111/1", "111")]
    assert [one.prompt for one in asked] == ["[Q]Write.[A]a1", "Write.a1Rewrite.a2", "One and one?twob1"]
    graded = bench.grade_replies(
        items, {"81": ["a1", "a2"], "111": ["b1"]}, {"81/1": "[[8]]", "81/2": "[[4]]", "111/1": "no"}
    )
    assert [one.sums for one in graded] == [(8, 1), (4, 1), None, None]
    assert [one.why[:20] for one in graded[2:]] == ["the reply holds no [", "it has no answer"]
    assert value(graded, bench) == 6


def test_mt_bench_without_its_references_is_refused(tmp_path: Path) -> None:
    folder, read = make.mt_folder(tmp_path / "mt"), BENCHMARKS["mt-bench"].read
    lines(folder / "reference_answer" / "gpt-4.jsonl", [{"question_id": 111, "choices": [{"turns": ["two"]}]}])
    with pytest.raises(BadFile, match=r"question 111: .* there is none for turn 2"):
        read(folder, None, tmp_path)
    lines(folder / "reference_answer" / "gpt-4.jsonl", [{"question_id": 111, "choices": []}])
    with pytest.raises(BadFile, match="choices must hold"):
        read(folder, None, tmp_path)
    make.mt_folder(folder)
    lines(folder / "judge_prompts.jsonl", [{"name": "pair-v2", "system_prompt": "", "prompt_template": ""}])
    with pytest.raises(BadFile, match="has no 'single-v1'"):
        read(folder, None, tmp_path)
    lines(folder / "question.jsonl", [{"question_id": 1, "category": "writing", "turns": ["one"]}])
    with pytest.raises(BadFile, match="must have two turns"):
        read(folder, None, tmp_path)
    with pytest.raises(BadFile, match=r"has no file question\.jsonl"):
        read(tmp_path, None, tmp_path)


def test_mt_benchs_official_files(tmp_path: Path) -> None:
    bench = BENCHMARKS["mt-bench"]
    assert bench.requests
    items = bench.read(shared("mt_bench"), None, tmp_path)
    assert len(items) == 80
    assert sum(bool(item.reference) for item in items) == 30
    asked = bench.requests(items, {item.id: ["ssrsrrrsrsrs", "SECOND"] for item in items})
    assert len(asked) == 160
    assert all("ssrsrrrsrsrs" in one.prompt for one in asked)
    assert sum("SECOND" in one.prompt for one in asked) == 80


# --- AlpacaEval ---


def test_alpaca_evals_order_is_drawn_and_undone(tmp_path: Path) -> None:
    bench = BENCHMARKS["alpaca-eval"]
    assert bench.requests
    assert bench.grade_replies
    items = bench.read(make.alpaca_file(tmp_path / "outputs.json", 40), None, tmp_path)
    answers = {item.id: ["MINE"] for item in items}
    asked = bench.requests(items, answers)
    first = {one.id: one.prompt.index("MINE") < one.prompt.index('"model": "model_2"') for one in asked}
    assert 8 < sum(first.values()) < 32
    mine = {name: str([{"model": "model_1", "rank": 1 if mine else 2}]) for name, mine in first.items()}
    graded = bench.grade_replies(items, answers, mine)
    assert value(graded, bench) == 100
    assert value(graded, bench, "baseline's length") == pytest.approx(sum(2 * n for n in range(1, 41)) / 40)
    assert figure(graded, bench.measures["win rate"]).characters == 4
    one_sided = {one.id: "[{'model': 'model_1', 'rank': 1}]" for one in asked}
    assert value(bench.grade_replies(items, answers, one_sided), bench) == pytest.approx(
        100 * sum(first.values()) / 40
    )
    assert items[0].id == alpaca_eval.name_of("Do 1.")


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1),
        ("[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]", 2),
        ('```python\n[{"model": "model_1", "rank": 2}, {"model": "model_2", "rank": 1}]\n```', 2),
        ("[{'model': 'model_1', 'rank': 3}]", None),
        ("[{'model': 'model_1', 'rank': True}]", None),
        ("[{'model': 'model_1'}]", None),
        ("[1, 2]", None),
        ("[[" * 4000 + "]", None),
        ("[__import__('os').system('true')]", None),
        ("model_1", None),
    ],
)
def test_rankings_of_alpaca_eval(reply: str, better: int | None) -> None:
    assert alpaca_items.read_ranking(reply) == better


def test_the_official_prompt_of_alpaca_eval_is_used_where_it_is(tmp_path: Path) -> None:
    bench, folder = BENCHMARKS["alpaca-eval"], tmp_path / "alpaca"
    assert bench.requests
    make.alpaca_file(folder / "model_outputs.json", 12)
    text = (
        "<|im_start|>system\nRank.\n<|im_end|>\n<|im_start|>user\n{instruction}|{output_1}|{output_2}\n<|im_end|>"
    )
    (folder / "alpaca_eval.txt").write_text(text)
    items = bench.read(folder, None, tmp_path)
    asked = bench.requests(items, {item.id: ["{output_1}{output_2}"] for item in items})
    assert {one.system for one in asked} == {"Rank."}
    for number, one in enumerate(asked, 1):  # an answer is never filled in
        assert sorted(one.prompt.split("|")) == sorted([f"Do {number}.", "{output_1}{output_2}", "no" * number])
    (folder / "alpaca_eval.txt").write_text("Which is better?")
    with pytest.raises(BadFile, match="has no user's message with"):
        bench.read(folder, None, tmp_path)
    (folder / "model_outputs.json").write_text(json.dumps([{"instruction": "x", "output": "y"}] * 2))
    with pytest.raises(BadFile, match="come more than once"):
        bench.read(folder, None, tmp_path)


def test_a_stored_items_words_can_be_a_plain_text() -> None:
    """As chats keep them; and requests read nothing but the item."""
    item = Item(
        "7", ({"role": "user", "content": "Say it."},), reference=("old",), extra={"baseline_characters": 3}
    )
    asked = alpaca_items.requests([item], {"7": ["new"]})
    assert "Say it." in asked[0].prompt
