"""Prompts → answers: by our decode loop, or by transformers' `generate` where the loop can't hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from jobs.gpu.decoding import Answer, CacheUnfit, Decoding, Sampling, noise_seed
from jobs.gpu.prompts import Messages, encode, to_device


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: the generation config's, else the text config's, and the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
            break
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def own_loop_refusal(model: Any) -> str:
    """Why our loop can't hold for this model, or "" where it can.

    It passes 1-D positions per row and a plain causal mask, and expects a cache that grows by concatenation.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    text = base.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if "mrope_section" in rope or hasattr(getattr(base, "model", base), "get_rope_index"):
        return "its positions have three dimensions (multimodal RoPE)"
    if getattr(base.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    kind = base.config.model_type
    if "gemma" in kind:
        return "its image tokens see both ways"
    if kind in ("mllama", "idefics", "blip-2", "instructblip", "kosmos-2", "git", "fuyu"):
        return "its images do not enter as plain tokens of the prompt"
    return ""


#: What a prompt may bring for our loop; anything else (token types, cross attention) needs the model's own.
_KNOWN_INPUTS = frozenset(
    {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "image_sizes", "num_crops"}
)


def inputs_refusal(inputs: Mapping[str, Any]) -> str:
    """Why our loop can't take these inputs, or ""."""
    strange = sorted(inputs.keys() - _KNOWN_INPUTS)
    return f"its processor gives {', '.join(strange)}" if strange else ""


class Answerer:
    """Answers prompts by our loop, or by `model.generate` where the loop can't hold.

    Args:
        note: is told once, in a sentence, when the loop is given up.
    """

    def __init__(self, model: Any, processor: Any, note: Callable[[str], None]) -> None:
        self._model = model
        self._processor = processor
        self._note = note
        self._refusal = ""
        self.ends = end_tokens(model, processor.tokenizer)
        if refusal := own_loop_refusal(model):
            self._give_up(refusal)

    @property
    def own_loop(self) -> bool:
        return not self._refusal

    def _give_up(self, refusal: str) -> None:
        self._refusal = refusal
        self._note(f"This model answers one sample at a time, through transformers' generate: {refusal}.")

    def on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as the model takes them; gives the loop up where it can't take them."""
        if self.own_loop and (refusal := inputs_refusal(inputs)):
            self._give_up(refusal)
        return to_device(inputs, self._model.device, self._model.dtype)

    def answers(
        self,
        conversations: Sequence[Messages],
        samples: Sequence[object],
        number: int,
        sampling: Sampling,
        between: Callable[[], None] = lambda: None,
        inputs: Mapping[str, Any] | None = None,
    ) -> list[list[Answer]]:
        """`number` answers for each conversation; `samples` names them, for the noise.

        `between` is called after every token; what it raises ends the work. `inputs` spares the encoding
        where the caller has it already.
        """
        encoded = self.on_device(inputs if inputs is not None else encode(self._processor, conversations))
        if self.own_loop:
            seeds = [noise_seed(sampling.seed, sample, k) for sample in samples for k in range(number)]
            try:
                decoding = Decoding(self._model, encoded, seeds, sampling, self.ends, answers=number)
                while not decoding.finished:
                    decoding.step()
                    between()
                return [decoding.answers[start : start + number] for start in range(0, len(seeds), number)]
            except CacheUnfit as unfit:
                self._give_up(str(unfit))
        answered = []
        for conversation, sample in zip(conversations, samples, strict=True):
            alone = self.on_device(encode(self._processor, [conversation]))
            seed = noise_seed(sampling.seed, sample, 0)
            answered.append(
                stock_answers(
                    self._model, alone, number, sampling, seed, self.ends, between=lambda tokens: between()
                )
            )
        return answered


def stock_answers(
    model: Any,
    inputs: Mapping[str, Any],
    number: int,
    sampling: Sampling,
    seed: int,
    ends: frozenset[int],
    between: Callable[[torch.Tensor], None],
) -> list[Answer]:
    """Answers to one prompt by transformers' `generate`, under the same settings; the global noise is put back.

    `between` sees the ids so far, prompt and answers, of shape (number, tokens), after every token.
    """
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Between(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            between(input_ids)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    settings: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        settings = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        num_return_sequences=number,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
        **settings,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        output = model.generate(
            **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([Between()])
        )
    return [cut(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def cut(tokens: Sequence[int], ends: frozenset[int]) -> Answer:
    """An answer from generated ids: everything before the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            return Answer(list(tokens[:place]), "stop")
    return Answer(list(tokens), "length")
