"""The shared prefix: the stock path's numbers, for each architecture, and nothing seen that may not be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from jobs.gpu.shared_prefix import ATTENTION, SharedPrefix, lay_out, why_not
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
    with pytest.raises(UserError, match=r"'flash_attention_2' can't take the mask.*Load the model with sdpa"):
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
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        lay_out(torch.ones(2, 4).long(), left, torch.ones(2, 4).long())


ANSWERS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sizes=ANSWERS, common=st.integers(0, 1))
def test_every_token_keeps_its_history(sizes: list[tuple[int, int, int]], common: int) -> None:
    """What a packed token sees, read off the mask in order, is its stock row up to itself, at its positions."""
    pairs = len(sizes)
    stock: list[list[int]] = []
    for side in (0, 1):
        for number, (*answers, prompt) in enumerate(sizes):
            shared = [1000 * number + place for place in range(prompt + common)]
            stock.append(shared + [1000 * number + 100 * (side + 1) + place for place in range(answers[side])])
    width = max(map(len, stock))
    ids, mask, labels = (torch.full((2 * pairs, width), fill) for fill in (0, 0, -100))
    for place, row in enumerate(stock):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        start = sizes[place % pairs][2]
        labels[place, start : len(row)] = ids[place, start : len(row)]
    layout = lay_out(ids, mask, labels)
    length = layout.source.shape[1]
    sees = torch.ones(pairs, length, length).bool().tril()
    sees[:, layout.causal :] = layout.sees[:, 0]
    packed = ids.flatten()[layout.source]
    wanted = [
        (place, column) for place in range(2 * pairs) for column in range(1, width) if labels[place, column] >= 0
    ]
    assert layout.targets.tolist() == [int(labels[spot]) for spot in wanted]
    for pick, (place, column) in zip(layout.picks.tolist(), wanted, strict=True):
        pair, spot = divmod(pick, length)
        assert pair == place % pairs
        assert packed[pair][sees[pair, spot]].tolist() == stock[place][:column]
        assert layout.columns[pair][sees[pair, spot]].tolist() == list(range(column))


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
