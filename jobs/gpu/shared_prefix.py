"""One sequence a pair: [image + prompt | chosen | rejected], the shared part computed once.

Stock DPO runs [image + prompt + chosen] and [image + prompt + rejected] as two rows, though the two have the
image and the prompt in common: with 576 image tokens, nearly everything. Here they are one row, in which
- a token of the rejected answer sees the shared part and what comes before it in its own answer, not the chosen
  answer (a 4-D mask);
- the positions of the rejected answer go on where the shared part ends (position ids of our own).
So each token meets the same keys at the same distances as in its own row, and the log-probabilities are the same
but for rounding. Prior art for text: Wang and Hegde 2024 (arXiv 2410.20305).

Three things more are saved: the tokens that both answers begin with count as shared; the last token of an answer
predicts nothing and is left out; the vocabulary's head runs at the answers' tokens alone (token_scores.py).

Supervised rows come in two ways. SteerLM's four answers of a sample begin alike, too, up to the first of their
attributes: they are one row with as many branches (layout.py). Rows that share nothing stay rows, and save the
vision tower's gradient, the padding's mask and the vocabulary at all tokens but the answers'.

`SharedPrefix` stands in for a model's `forward` where TRL calls it, takes the stacked rows of TRL's collator (or
of ours) and hands back scores in the stacked shape: TRL's losses don't notice.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from jobs.gpu.layout import Layout, lay_out
from jobs.gpu.lora import language_prefix
from jobs.gpu.token_scores import TokenScores, score_tokens
from storage.errors import UserError

#: Architectures that were tested for equality with the stock path (tests/test_shared_prefix.py).
FAMILIES = frozenset({"llava", "llava_next", "qwen2_5_vl", "smolvlm"})

#: Language models whose attention goes through transformers' interface, with full causal attention.
LANGUAGES = frozenset({"llama", "mistral", "qwen2", "qwen2_5_vl_text"})

#: Settings that change logits after the head; the head here knows none of them.
RESCALED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")

#: Tensors with one entry a token: they are of no use in the packed order, or made anew.
TOKENWISE = ("token_type_ids", "mm_token_type_ids", "position_ids")

ATTENTION = "plumb_shared_prefix"


def why_not(model: Any) -> str | None:
    """Why this model can't share a prefix, for a note to the reader; None where it can.

    Raises:
        UserError: it runs on flash attention, which reads a 4-D mask as padding and is wrong without a word.
    """
    config = model.config
    text = config.get_text_config()
    attention = str(text._attn_implementation)
    if attention not in ("sdpa", "eager", ATTENTION):
        raise UserError(
            f"The attention implementation {attention!r} can't take the mask of a shared prefix: it would read it "
            "as padding and give wrong numbers without a word. Set attention to 'sdpa', or shared_prefix to false."
        )
    if config.model_type not in FAMILIES:
        return f"a model of type {config.model_type!r} was not tested with a shared prefix"
    if text.model_type not in LANGUAGES:
        return f"a language model of type {text.model_type!r} was not tested with a shared prefix"
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) or (
        getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    ):
        return "its language model sees a sliding window of the text"
    if any(getattr(text, name, None) not in (None, 1, 1.0) for name in RESCALED):
        return "its language model rescales what the head gives"
    return None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa in two parts: plain causal attention for what every row shares, the mask for the rest.

    A mask with fewer rows than there are queries belongs to the last of them (`Layout.sees`). The first part
    needs no mask and skips what lies above the diagonal; that is most of the work where images are long. Any
    other mask is what sdpa takes anyway: the model's other uses (the stock path, generating) go on as before.
    """
    if attention_mask is None or attention_mask.shape[-2] == query.shape[-2]:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **named
        )
        return whole
    causal = query.shape[-2] - attention_mask.shape[-2]
    named.pop("is_causal", None)
    first, _ = sdpa_attention_forward(
        module,
        query[:, :, :causal],
        key[:, :, :causal],
        value[:, :, :causal],
        None,
        is_causal=True,
        **named,
    )
    rest, _ = sdpa_attention_forward(module, query[:, :, causal:], key, value, attention_mask, **named)
    return torch.cat([first, rest], dim=1), None


class SharedPrefix:
    """A model's `forward` that computes what two answers share once.

    `on` switches it: off, the batch goes the stock way, with the images given to both halves.

    Args:
        model: the base model itself, out of its PEFT wrapper, after TRL has put its fused head in.
        images_once: batches bring each pair's images once, as PreparedCollator does, and not stacked twice.
    """

    def __init__(self, model: Any, images_once: bool) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(reason)
        self.on = True
        self.images_once = images_once
        self._model = model
        self._stock = model.forward
        language = language_prefix(model)
        self._eager = model.config.get_text_config()._attn_implementation == "eager"
        self._outside = [
            parameter
            for name, parameter in model.named_parameters()
            if not name.startswith(f"{language}.") and parameter is not model.get_output_embeddings().weight
        ]
        if not self._eager:
            AttentionInterface.register(ATTENTION, attend)
            AttentionMaskInterface.register(ATTENTION, sdpa_mask)
            # To stay: gradient checkpointing calls attention again in the backward.
            model.get_submodule(language).config._attn_implementation = ATTENTION

    def install(self) -> SharedPrefix:
        """Put it in the model's place of `forward`; returns itself."""
        prefix = self

        # The original signature: `generate` checks its arguments against it.
        @functools.wraps(type(self._model).forward)
        def forward(_: Any, *given: Any, fused_lm_head: bool = False, labels: Any = None, **named: Any) -> Any:
            if fused_lm_head and labels is not None and not given:
                return prefix.score(labels, named)
            if labels is not None:
                named["labels"] = labels
            return prefix._stock(*given, fused_lm_head=fused_lm_head, **named)

        self._model.forward = types.MethodType(forward, self._model)
        return self

    def remove(self) -> None:
        """Give the model its own `forward` back."""
        self._model.forward = self._stock

    def score(self, labels: torch.Tensor, named: dict[str, Any]) -> Any:
        """Scores of a stacked batch's labels, each of shape (rows, T − 1).

        Rows are chosen over rejected ones, with the images as `images_once` says. With `groups` among the
        arguments they are as `lay_out` takes them, and each group brings its images once. With `alone` they share
        nothing, bring their own images, and are padded on the right.
        """
        ids = named["input_ids"]
        alone, groups = named.pop("alone", False), named.pop("groups", None)
        images = images_of(named)
        if alone:
            return self._score_alone(labels, images, named)
        if not self.on and groups is None:
            plain = {key: value for key, value in named.items() if key not in images}
            if self.images_once:
                images = {key: torch.cat([value, value]) for key, value in images.items()}
            return self._stock(**plain, **images, labels=labels, fused_lm_head=True)
        if not self.images_once and groups is None:
            images = {key: value[: len(value) // 2] for key, value in images.items()}
        layout = lay_out(ids, named["attention_mask"], labels, self._eager, groups)
        hidden = self._hidden(ids, layout, images, named)
        return self._spread(hidden.flatten(0, 1)[layout.picks], layout.targets, layout.labelled)

    def _score_alone(
        self, labels: torch.Tensor, images: dict[str, torch.Tensor], named: dict[str, Any]
    ) -> TokenScores:
        """Rows as they are, with the vocabulary's head at what predicts the labels alone.

        Without a mask: padding stands on the right, where causal attention never looks, and attention without a
        mask is the fast one.
        """
        hidden = self._model.base_model(
            input_ids=named["input_ids"],
            position_ids=self._stock_positions(named["input_ids"], images, named),
            use_cache=False,
            **self._encoded(images),
        ).last_hidden_state
        labelled = labels[:, 1:] != -100
        return self._spread(hidden[:, :-1][labelled], labels[:, 1:][labelled], labelled)

    def _spread(self, hidden: torch.Tensor, targets: torch.Tensor, labelled: torch.Tensor) -> TokenScores:
        """The scores of these targets, put where the labels are."""
        found = score_tokens(hidden, self._model.get_output_embeddings(), targets)
        spread = (one.new_zeros(labelled.shape).masked_scatter(labelled, one) for one in found)
        return TokenScores(*spread, label_mask=labelled)

    def _encoded(self, images: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The images as the backbone takes them; encoded here, without a gradient, where nothing there is trained.

        Gradient checkpointing makes the tower's embeddings ask for gradients, which lead nowhere.
        """
        if not images or any(parameter.requires_grad for parameter in self._outside):
            return dict(images)
        with torch.no_grad():
            return {
                "mm_encoder_outputs": {
                    "image": self._model.base_model.get_image_features(**images, return_dict=True)
                }
            }

    def _hidden(
        self, ids: torch.Tensor, layout: Layout, images: dict[str, torch.Tensor], named: Mapping[str, Any]
    ) -> torch.Tensor:
        """The last hidden states of the packed rows, (B, L, width)."""
        backbone = self._model.base_model
        mask = layout.sees
        if self._eager:
            dtype = self._model.get_input_embeddings().weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        output = backbone(
            input_ids=ids.flatten()[layout.source],
            attention_mask=mask,
            position_ids=self._positions(ids, layout, images, named),
            use_cache=False,
            **self._encoded(images),
        )
        return output.last_hidden_state

    def _positions(
        self, ids: torch.Tensor, layout: Layout, images: dict[str, torch.Tensor], named: Mapping[str, Any]
    ) -> torch.Tensor:
        """(B, L), or (3, B, L) where the model has positions in time, height and width (Qwen-VL)."""
        stock = self._stock_positions(ids, images, named, layout.heads)
        if stock is None:
            return layout.columns
        inside = torch.arange(ids.shape[1], device=ids.device) < layout.shared[:, None]
        # Text after the shared part goes on from the largest position there, alike in all three.
        last = torch.where(inside, stock.amax(dim=0), -1).amax(dim=1, keepdim=True)
        onward = last + 1 + layout.columns - layout.shared[:, None]
        within = stock.gather(2, layout.columns.expand(3, -1, -1).clamp(max=ids.shape[1] - 1))
        return torch.where(layout.columns < layout.shared[:, None], within, onward)

    def _stock_positions(
        self,
        ids: torch.Tensor,
        images: dict[str, torch.Tensor],
        named: Mapping[str, Any],
        heads: torch.Tensor | slice = slice(None),
    ) -> torch.Tensor | None:
        """The model's own positions of these rows, (3, rows, T); None where they are the columns' numbers."""
        grid, kinds = images.get("image_grid_thw"), named.get("mm_token_type_ids")
        if grid is None or kinds is None:
            return None
        positions: torch.Tensor = self._model.base_model.get_rope_index(
            ids[heads], kinds[heads], image_grid_thw=grid, attention_mask=named["attention_mask"][heads]
        )[0]
        return positions


def images_of(named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the processor made of images: every tensor that has not one entry a token."""
    shape = named["input_ids"].shape
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, torch.Tensor) and value.shape[:2] != shape and name not in TOKENWISE
    }
