"""The shared prefix: the stock path's numbers, for each architecture, and nothing seen that may not be."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from jobs.gpu.collate import batch_images
from jobs.gpu.layout import lay_out
from jobs.gpu.prepared import ROW_WISE
from jobs.gpu.shared_prefix import ATTENTION, SharedPrefix, why_not
from jobs.gpu.token_scores import score_tokens
from storage.errors import UserError

NAMES = list(tiny_models.FAMILIES)

#: Images of each pair, and tokens of its answers.
BATCHES: dict[str, tuple[list[int], list[tuple[int, int]]]] = {
    "one pair": ([1], [(5, 9)]),
    "mixed": ([1, 0, 2], [(5, 9), (12, 1), (3, 3)]),
    "text alone": ([0, 0], [(4, 6), (7, 2)]),
    "single tokens": ([1, 1], [(1, 1), (1, 6)]),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def both(name: str, checkpointing: bool = False, seed: int = 0) -> tuple[Any, SharedPrefix]:
    model = tiny_models.make(name, seed)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, SharedPrefix(model.get_base_model(), images_once=True).install()


def run(
    model: Any, prefix: SharedPrefix, on: bool, batch: Any, images: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Scores, and the gradients of a DPO loss."""
    prefix.on = on
    model.zero_grad()
    output = model(**batch, **images, use_cache=False, fused_lm_head=True)
    sums = output.log_probs.sum(dim=1)
    chosen, rejected = sums.chunk(2)
    torch.autograd.backward(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected) + 0.3).mean())
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_the_stock_path(name: str, kind: str, checkpointing: bool) -> None:
    model, prefix = both(name, checkpointing)
    batch, images = tiny_models.stacked(name, *BATCHES[kind])
    stock, stock_gradients = run(model, prefix, False, batch, images)
    ours, gradients = run(model, prefix, True, batch, images)

    scored = batch["labels"][:, 1:] != -100
    assert ours.log_probs.shape == stock.log_probs.shape
    assert float((ours.log_probs - stock.log_probs).detach().sum(1).abs().max()) < 1e-4
    for field in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(ours[field][scored], stock[field][scored], atol=2e-5, rtol=1e-5)
        assert not ours[field][~scored].any()
    assert torch.equal(ours.is_top1[scored], stock.is_top1[scored])
    assert gradients.keys() == stock_gradients.keys()
    assert all("lora_" in parameter for parameter in gradients)
    for parameter, wanted in stock_gradients.items():
        assert float((gradients[parameter] - wanted).norm()) <= 1e-4 * float(wanted.norm()), parameter


@pytest.mark.parametrize("name", NAMES)
def test_answers_that_begin_alike_share_their_beginning(name: str) -> None:
    model, prefix = both(name)
    batch, images = tiny_models.stacked(name, [1, 1], [(6, 9), (7, 4)], common=3)
    stock, stock_gradients = run(model, prefix, False, batch, images)
    ours, gradients = run(model, prefix, True, batch, images)
    torch.testing.assert_close(ours.log_probs, stock.log_probs, atol=2e-5, rtol=1e-5)
    for parameter, wanted in stock_gradients.items():
        assert float((gradients[parameter] - wanted).norm()) <= 1e-4 * float(wanted.norm()), parameter
    layout = lay_out(batch["input_ids"], batch["attention_mask"], batch["labels"])
    prompts = (batch["labels"][:2] == -100).long().cumprod(1).sum(1)
    assert torch.equal(layout.shared, prompts + 3)


def test_two_answers_of_which_one_is_the_others_beginning_or_the_same() -> None:
    model, prefix = both("llava")
    batch, images = tiny_models.stacked("llava", [1, 1], [(4, 9), (5, 5)], common=4)
    ids, labels = batch["input_ids"], batch["labels"]
    ids[3], labels[3] = ids[1], labels[1]  # the second pair's answers are equal
    stock, _ = run(model, prefix, False, batch, images)
    ours, _ = run(model, prefix, True, batch, images)
    torch.testing.assert_close(ours.log_probs, stock.log_probs, atol=2e-5, rtol=1e-5)


def test_each_answer_is_blind_to_the_other() -> None:
    """Another chosen answer leaves the rejected one's scores as they are, to the last bit, and vice versa."""
    model, prefix = both("llava")
    prefix.on = True
    batch, images = tiny_models.stacked("llava", [1, 2], [(6, 9), (7, 4)])
    with torch.no_grad():
        before = model(**batch, **images, fused_lm_head=True).log_probs
        for changed, still in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))):
            other = {name: value.clone() for name, value in batch.items()}
            answer = other["labels"][changed] != -100
            swapped = (other["input_ids"][changed] + 7) % tiny_models.TEXT
            other["input_ids"][changed] = torch.where(answer, swapped, other["input_ids"][changed])
            other["labels"][changed] = torch.where(answer, swapped, -100)
            after = model(**other, **images, fused_lm_head=True).log_probs
            assert torch.equal(before[still], after[still])
            assert not torch.allclose(before[changed], after[changed], atol=1e-2)


#: Images of each sample, and of each of its answers the tokens of what it is asked for, and its own.
SUPERVISED: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {
    "one row": [(1, [(2, 9)])],
    "mixed": [(1, [(2, 5)]), (0, [(1, 12)]), (2, [(3, 3)]), (1, [(1, 1)])],
    "text alone": [(0, [(1, 4)]), (0, [(2, 7)])],
}
KIN: dict[str, list[tuple[int, list[tuple[int, int]]]]] = {
    "four answers": [(1, [(2, 5), (2, 9), (2, 3), (2, 1)])],
    "unequal numbers": [(1, [(2, 5), (3, 8)]), (2, [(1, 4)]), (0, [(2, 6), (1, 2), (4, 9), (2, 3), (1, 1)])],
    "text alone": [(0, [(1, 4), (2, 2)]), (0, [(2, 7), (0, 3), (1, 1)])],
    "nothing but answers": [(1, [(0, 5), (0, 9), (0, 3)]), (2, [(0, 4), (0, 4)])],
}


def supervised(
    name: str, samples: Sequence[tuple[int, list[tuple[int, int]]]], seed: int = 0
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor], list[int]]:
    """Rows of supervised fine-tuning, shuffled: the batch, images once a row, once a sample, each row's sample."""
    chance = random.Random(seed)
    made: list[tuple[list[int], int, int]] = []
    shown: list[dict[str, torch.Tensor]] = []
    for number, (count, answers) in enumerate(samples):
        prompts, images = tiny_models.FAMILIES[name].prompts([count], chance)
        shown.append(images)
        for asked, size in answers:
            start = prompts[0] + tiny_models.words(asked, chance)
            made.append((start + tiny_models.words(size, chance), len(start), number))
    chance.shuffle(made)
    rows, starts, owners = [row for row, _, _ in made], [start for _, start, _ in made], [own for *_, own in made]
    firsts = list(dict.fromkeys(owners))
    shape = (len(rows), max(map(len, rows)))
    ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        labels[place, starts[place] : len(row)] = ids[place, starts[place] : len(row)]
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if name == "qwen2_5_vl":
        batch["mm_token_type_ids"] = (ids == tiny_models.IMAGE).long()
    each = batch_images([shown[owner] for owner in owners], name in ROW_WISE)
    once = batch_images([shown[first] for first in firsts], name in ROW_WISE)
    return batch, each, once, [firsts.index(owner) for owner in owners]


def fine_tune(model: Any, **given: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Scores, and the gradients of TRL's supervised loss."""
    model.zero_grad()
    output = model(**given, use_cache=False, fused_lm_head=True)
    torch.autograd.backward(-output.log_probs.sum() / output.label_mask.sum())
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_as_stock(ours: tuple[Any, dict[str, torch.Tensor]], stock: tuple[Any, dict[str, torch.Tensor]]) -> None:
    (found, gradients), (wanted, stock_gradients) = ours, stock
    assert torch.equal(found.label_mask, wanted.label_mask)
    tokens = wanted.label_mask.sum()
    assert float(abs(found.log_probs.sum() - wanted.log_probs.sum()).detach() / tokens) < 1e-5  # the loss
    torch.testing.assert_close(found.log_probs, wanted.log_probs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, wanted.entropy, atol=2e-5, rtol=1e-5)
    assert torch.equal(found.is_top1, wanted.is_top1)
    assert gradients.keys() == stock_gradients.keys()
    assert all("lora_" in parameter for parameter in gradients)
    for parameter, gradient in stock_gradients.items():
        assert float((gradients[parameter] - gradient).norm()) <= 1e-4 * float(gradient.norm()), parameter


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", SUPERVISED)
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_share_nothing_are_as_stock(name: str, kind: str, checkpointing: bool) -> None:
    model, prefix = both(name, checkpointing)
    batch, images, _, _ = supervised(name, SUPERVISED[kind])
    ours = fine_tune(model, **batch, **images, alone=True)
    prefix.remove()
    same_as_stock(ours, fine_tune(model, **batch, **images))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KIN)
@pytest.mark.parametrize("name", NAMES)
def test_kin_in_one_sequence_are_as_stock(name: str, kind: str, checkpointing: bool) -> None:
    model, prefix = both(name, checkpointing)
    batch, each, once, groups = supervised(name, KIN[kind])
    ours = fine_tune(model, **batch, **once, groups=groups)
    prefix.remove()
    same_as_stock(ours, fine_tune(model, **batch, **each))


@pytest.mark.parametrize("kin", [True, False])
def test_rows_that_are_all_the_same(kin: bool) -> None:
    """Nothing is left for a branch of its own."""
    model, prefix = both("llava")
    batch, each, once, groups = supervised("llava", [(1, [(2, 5)])])
    batch = {name: torch.cat([value, value]) for name, value in batch.items()}
    twice = {name: torch.cat([value, value]) for name, value in each.items()}
    ours = fine_tune(model, **batch, **once, **({"groups": groups * 2} if kin else {}))
    prefix.remove()
    same_as_stock(ours, fine_tune(model, **batch, **twice))


def test_kin_under_eager_attention_are_as_stock() -> None:
    batch, each, once, groups = supervised("llava", KIN["unequal numbers"])
    model = tiny_models.make("llava")
    model.set_attn_implementation("eager")
    prefix = SharedPrefix(model.get_base_model(), images_once=True).install()
    ours = fine_tune(model, **batch, **once, groups=groups)
    alone = fine_tune(model, **batch, **each, alone=True)
    prefix.remove()
    stock = fine_tune(model, **batch, **each)
    same_as_stock(ours, stock)
    same_as_stock(alone, stock)


def test_each_of_the_kin_is_blind_to_the_others() -> None:
    """Another answer of a sample leaves the scores of the rest as they are, to the last bit."""
    model, _ = both("llava")
    batch, _, once, groups = supervised("llava", KIN["unequal numbers"])
    with torch.no_grad():
        before = model(**batch, **once, groups=groups, fused_lm_head=True).log_probs
        for changed in range(len(groups)):
            ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
            answer = labels[changed] != -100
            ids[changed, answer] = (ids[changed, answer] + 7) % tiny_models.TEXT
            labels[changed, answer] = ids[changed, answer]
            other = {**batch, "input_ids": ids, "labels": labels}
            after = model(**other, **once, groups=groups, fused_lm_head=True).log_probs
            rest = [row for row in range(len(groups)) if row != changed]
            assert torch.equal(before[rest], after[rest])
            assert not torch.allclose(before[changed], after[changed], atol=1e-2)


def test_kin_show_the_tower_their_images_once() -> None:
    model, _ = both("llava")
    seen: list[tuple[int, ...]] = []
    base = model.get_base_model()
    base.model.vision_tower.register_forward_pre_hook(
        lambda _, given, named: seen.append(tuple((given[0] if given else named["pixel_values"]).shape)),
        with_kwargs=True,
    )
    base.model.language_model.register_forward_pre_hook(
        lambda _, given, named: seen.append(tuple(named["inputs_embeds"].shape)), with_kwargs=True
    )
    batch, _, once, groups = supervised("llava", KIN["four answers"])
    fine_tune(model, **batch, **once, groups=groups)
    prompt = int((batch["labels"] == -100).long().cumprod(1).sum(1)[0]) - 2
    packed = prompt + sum(2 + size - 1 for _, size in KIN["four answers"][0][1])
    assert seen == [(1, 3, 16, 16), (1, packed, tiny_models.WIDTH)]


def test_no_answer_but_a_gradient_all_the_same() -> None:
    """A batch without a token to learn gives a zero that can be differentiated, on both ways."""
    model, _ = both("llava")
    batch, each, once, groups = supervised("llava", KIN["four answers"])
    batch["labels"].fill_(-100)
    for images, how in ((each, {"alone": True}), (once, {"groups": groups})):
        output = model(**batch, **images, **how, fused_lm_head=True)
        torch.autograd.backward(output.log_probs.sum())
        assert not output.log_probs.detach().any()


def test_the_image_is_seen() -> None:
    model, _ = both("llava")
    batch, images = tiny_models.stacked("llava", [1], [(6, 9)])
    with torch.no_grad():
        before = model(**batch, **images, fused_lm_head=True).log_probs
        after = model(**batch, pixel_values=images["pixel_values"] * -1, fused_lm_head=True).log_probs
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("on", [True, False])
def test_images_that_come_stacked_twice(on: bool) -> None:
    """TRL's own collator repeats the images."""
    batch, images = tiny_models.stacked("llava_next", [1, 2], [(6, 9), (2, 3)])
    model, prefix = both("llava_next")
    once, _ = run(model, prefix, on, batch, images)
    prefix.remove()
    twice = SharedPrefix(model.get_base_model(), images_once=False).install()
    repeated = {name: torch.cat([value, value]) for name, value in images.items()}
    stacked, _ = run(model, twice, on, batch, repeated)
    torch.testing.assert_close(stacked.log_probs, once.log_probs)


def test_eager_attention_gives_the_same() -> None:
    batch, images = tiny_models.stacked("llava", [1, 0, 2], [(5, 9), (12, 1), (3, 3)])
    model, prefix = both("llava")
    wanted, _ = run(model, prefix, True, batch, images)
    other = tiny_models.make("llava")
    other.set_attn_implementation("eager")
    found, _ = run(other, SharedPrefix(other.get_base_model(), images_once=True).install(), True, batch, images)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, atol=2e-5, rtol=1e-5)


def test_the_tower_sees_each_image_once_and_the_language_model_each_prompt_once() -> None:
    model, prefix = both("llava")
    base = model.get_base_model()
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, given: Any, named: Any) -> None:
            value = given[0] if given else named.get("pixel_values", named.get("inputs_embeds"))
            seen[name] = tuple(value.shape)

        return hook

    base.model.vision_tower.register_forward_pre_hook(watch("tower"), with_kwargs=True)
    base.model.language_model.register_forward_pre_hook(watch("language"), with_kwargs=True)
    base.lm_head.register_forward_pre_hook(watch("head"), with_kwargs=True)
    batch, images = tiny_models.stacked("llava", [1, 1], [(6, 9), (7, 4)])
    run(model, prefix, True, batch, images)
    prompts = (batch["labels"][:2] == -100).long().cumprod(1).sum(1)
    longest = max(int(prompts[0]) + 5 + 8, int(prompts[1]) + 6 + 3)  # an answer's last token predicts nothing
    assert seen == {"tower": (2, 3, 16, 16), "language": (2, longest, tiny_models.WIDTH)}


def test_a_trained_projector_gets_its_gradient() -> None:
    batch, images = tiny_models.stacked("llava", [1, 2], [(6, 9), (7, 4)])
    model, prefix = both("llava")
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    _, stock = run(model, prefix, False, batch, images)
    _, ours = run(model, prefix, True, batch, images)
    trained = [name for name in stock if "projector" in name]
    assert trained
    for name in trained:
        assert float((ours[name] - stock[name]).norm()) <= 1e-4 * float(stock[name].norm()), name


def test_under_autocast_the_numbers_stay_near() -> None:
    batch, images = tiny_models.stacked("llava", [1, 0, 2], [(5, 9), (12, 1), (3, 3)])
    model, prefix = both("llava")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock, _ = run(model, prefix, False, batch, images)
        ours, _ = run(model, prefix, True, batch, images)
    assert ours.log_probs.dtype == torch.float32
    torch.testing.assert_close(ours.log_probs, stock.log_probs.float(), atol=0.5, rtol=0.05)


def test_generating_goes_on_as_before() -> None:
    """The attention stays exchanged after training: left-padded rows must still be masked."""
    plain = tiny_models.make("llava").eval()
    model, _ = both("llava")
    model.eval()
    assert model.config.get_text_config()._attn_implementation == ATTENTION
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = (ids != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids, attention_mask=mask).logits, plain(input_ids=ids, attention_mask=mask).logits
        )
        wanted = plain.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        assert torch.equal(
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False), wanted
        )


def test_flash_attention_is_refused() -> None:
    model = tiny_models.make_llava()
    model.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(
        UserError, match=r"'flash_attention_2' can't take the mask.*attention to 'sdpa', or shared_prefix"
    ):
        why_not(model)


def test_models_that_cannot_share_say_why() -> None:
    assert why_not(tiny_models.make_llava()) is None
    assert "'gemma3' was not tested" in str(why_not(tiny_models.make_gemma3()))
    with pytest.raises(ValueError, match="gemma3"):
        SharedPrefix(tiny_models.make_gemma3(), images_once=True)
    model = tiny_models.make_llava()
    model.config.get_text_config().sliding_window = 8
    assert "sliding window" in str(why_not(model))
    model = tiny_models.make_llava()
    model.config.get_text_config().logits_scaling = 2.0
    assert "rescales" in str(why_not(model))


def test_rows_that_no_layout_fits() -> None:
    ids, mask = torch.ones(3, 4).long(), torch.ones(3, 4).long()
    with pytest.raises(ValueError, match="3 rows"):
        lay_out(ids, mask, ids)
    for groups in ([0, 1], [1, 0, 1], [0, 2, 2]):
        with pytest.raises(ValueError, match="groups of 3 rows"):
            lay_out(ids, mask, ids, groups=groups)
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        lay_out(torch.ones(2, 4).long(), left, torch.ones(2, 4).long())


ANSWERS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=4)

#: Of each group the prompt's tokens, and of each row tokens that aren't scored, and scored ones.
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=5)
GROUPS = st.lists(st.tuples(st.integers(1, 12), ROWS), min_size=1, max_size=4)


def keeps_history(stock: list[list[int]], starts: list[int], groups: list[int], stacked_pairs: bool) -> None:
    """What a packed token sees, read off the mask in order, is its stock row up to itself, at its positions."""
    shape = (len(stock), max(map(len, stock)))
    ids, mask, labels = (torch.full(shape, fill) for fill in (0, 0, -100))
    for place, row in enumerate(stock):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        labels[place, starts[place] : len(row)] = ids[place, starts[place] : len(row)]
    layout = lay_out(ids, mask, labels, groups=None if stacked_pairs else groups)
    count, length = layout.source.shape
    assert count == max(groups) + 1
    sees = torch.ones(count, length, length).bool().tril()
    sees[:, layout.causal :] = layout.sees[:, 0]
    packed = ids.flatten()[layout.source]
    wanted = [
        (place, column)
        for place in range(len(stock))
        for column in range(1, shape[1])
        if labels[place, column] >= 0
    ]
    assert layout.targets.tolist() == [int(labels[spot]) for spot in wanted]
    for pick, (place, column) in zip(layout.picks.tolist(), wanted, strict=True):
        group, spot = divmod(pick, length)
        assert group == groups[place]
        assert packed[group][sees[group, spot]].tolist() == stock[place][:column]
        assert layout.columns[group][sees[group, spot]].tolist() == list(range(column))


@settings(max_examples=60, deadline=None)
@given(sizes=ANSWERS, common=st.integers(0, 1))
def test_every_token_of_a_pair_keeps_its_history(sizes: list[tuple[int, int, int]], common: int) -> None:
    pairs = len(sizes)
    stock: list[list[int]] = []
    for side in (0, 1):
        for number, (*answers, prompt) in enumerate(sizes):
            shared = [1000 * number + place for place in range(prompt + common)]
            stock.append(shared + [1000 * number + 100 * (side + 1) + place for place in range(answers[side])])
    starts = [prompt for *_, prompt in sizes] * 2
    keeps_history(stock, starts, [*range(pairs)] * 2, stacked_pairs=True)


@settings(max_examples=100, deadline=None)
@given(samples=GROUPS, seed=st.integers(0, 99))
def test_every_token_of_kin_keeps_its_history(samples: list[tuple[int, list[tuple[int, int]]]], seed: int) -> None:
    rows = []
    for number, (prompt, answers) in enumerate(samples):
        for branch, (asked, size) in enumerate(answers):
            shared = [1000 * number + place for place in range(prompt)]
            own = [1000 * number + 100 * (branch % 3 + 1) + place for place in range(asked + size)]
            rows.append((number, shared + own, prompt + asked))  # the fourth begins as the first does
    random.Random(seed).shuffle(rows)
    owners = [number for number, _, _ in rows]
    groups = [list(dict.fromkeys(owners)).index(number) for number in owners]
    keeps_history([row for _, row, _ in rows], [start for _, _, start in rows], groups, stacked_pairs=False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", [1 << 24, 100])
def test_scores_and_their_gradient_are_those_of_autograd(
    bias: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.gpu.token_scores.TILE", tile)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 40, bias=bias).requires_grad_(False)
    hidden = torch.randn(11, 8, requires_grad=True)
    targets, weights = torch.randint(0, 40, (11,)), torch.randn(11)
    log_probs, entropy, mean, top = score_tokens(hidden, head, targets)
    (ours,) = torch.autograd.grad((log_probs * weights).sum(), hidden)
    logits = head(hidden)
    whole = logits.log_softmax(dim=1)
    wanted = whole.gather(1, targets[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    torch.testing.assert_close(log_probs, wanted)
    torch.testing.assert_close(ours, gradient)
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(dim=1))
    torch.testing.assert_close(mean, logits.mean(dim=1))
    assert torch.equal(top, logits.argmax(dim=1) == targets)


def test_a_trained_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head is trained"):
        score_tokens(torch.randn(2, 4), torch.nn.Linear(4, 9), torch.tensor([1, 2]))


def test_no_labels_at_all() -> None:
    """A batch without an answer's token contributes a zero that can be differentiated."""
    model, _ = both("llava")
    batch, images = tiny_models.stacked("llava", [1], [(5, 9)])
    batch["labels"].fill_(-100)
    output = model(**batch, **images, fused_lm_head=True)
    torch.autograd.backward(output.log_probs.sum())
    assert not output.log_probs.detach().any()
