"""Stage 2 of the demo VLM's training: projector and LoRA learn to answer questions about pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from jobs.gpu.demo.build import LORA_FOLDER, PROJECTOR_FILE, llava_config
from jobs.gpu.demo.data import Question, Traits, load_questions, traits_from_answers
from jobs.gpu.demo.packing import Batch, Phase, Renderer, batches
from jobs.gpu.demo.tower import load_pixels, patch_features

PROJECTOR_RATE = 1e-3
LORA_RATE = 5e-4
WARM_UP = 10
SAVE_EVERY = 50
ALIGN_STEPS = 400
ALIGN_IMAGES = 32
ALIGN_RATE = 2e-3
# "yes" to "is there not a circle?" is the exclusive or of two things, which gradients find hard: with negated
# questions and both styles from the first step, yes/no answers stayed at their prior for 250 steps. So one
# after the other.
PHASES = (
    Phase("tune: words", steps=150, until=0.95, negated=False),
    Phase("tune: negations", steps=150, until=0.95),
    Phase("tune: styles", steps=120, sentence_share=0.3),
)
LORA = LoraConfig(
    r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    task_type="CAUSAL_LM",
)


class Learner:
    """Projector, and the language model with its LoRA, over pictures that the frozen tower has seen."""

    def __init__(self, language: LlamaForCausalLM, image_token_id: int) -> None:
        self.image_token_id = image_token_id
        self.projector = LlavaMultiModalProjector(llava_config(language.config, image_token_id)).to(torch.bfloat16)
        # The adapter in bfloat16 as well: PEFT's float32 adapter casts the activations to and fro in every
        # layer.
        self.language: PeftModel = get_peft_model(language, LORA, autocast_adapter_dtype=False)

    def resume(self, folder: Path) -> None:
        """Take projector and LoRA from an earlier training's ``folder``; the optimizer starts afresh."""
        self.projector.load_state_dict(load_file(folder / PROJECTOR_FILE))
        set_peft_model_state_dict(self.language, load_file(folder / LORA_FOLDER / "adapter_model.safetensors"))

    def align(
        self,
        patches: Mapping[int, torch.Tensor],
        traits: Mapping[int, Traits],
        tokenizer: PreTrainedTokenizerFast,
    ) -> float:
        """Start the projector where the language model's words are; returns the last cosine, half a minute.

        Every patch is to look like the sum of the words " red" and " circle" if that is what its picture
        shows. A language model has heads that notice when a word comes again, so "is there a circle?" begins
        as the comparison that it is. On its own this was not enough (see PHASES); what it adds to them was not
        measured.
        """
        words = self.language.get_input_embeddings().weight.detach().float()

        def vector(word: str) -> torch.Tensor:
            return words[tokenizer(f" {word}", add_special_tokens=False)["input_ids"]].sum(0)

        numbers = sorted(patches.keys() & traits.keys())
        wanted = torch.stack([vector(traits[n].color) + vector(traits[n].shape) for n in numbers])
        seen = torch.stack([patches[n] for n in numbers])
        projector = self.projector.float()
        optimizer = torch.optim.AdamW(projector.parameters(), lr=ALIGN_RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=ALIGN_STEPS)
        cosine = torch.zeros(())
        for _ in range(ALIGN_STEPS):
            rows = torch.randint(len(numbers), (ALIGN_IMAGES,))
            projected = projector(seen[rows].float())
            target = wanted[rows][:, None].expand_as(projected)
            loss = nn.functional.mse_loss(projected, target) / wanted.var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            cosine = nn.functional.cosine_similarity(projected.detach(), target, dim=-1).mean()
        self.projector.to(torch.bfloat16)
        return round(cosine.item(), 3)

    def forward(self, batch: Batch, patches: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Loss (sum over an answer's tokens, mean over answers) and the share of bare answers whose word is
        right.

        ``patches``: (row, 64, 192), what the tower sees in each row's picture.
        """
        causal_model = self.language.base_model.model
        embeddings = causal_model.model.embed_tokens(batch.input_ids)
        image = (batch.input_ids == self.image_token_id)[..., None]
        embeddings = embeddings.masked_scatter(image, self.projector(patches).to(embeddings.dtype))
        hidden = causal_model.model(
            inputs_embeds=embeddings,
            attention_mask=batch.sees,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        rows, places, tokens = batch.targets.unbind(1)
        logits = causal_model.lm_head(hidden[rows, places]).float()
        loss = nn.functional.cross_entropy(logits, tokens, reduction="sum") / batch.answers
        hits = (logits.argmax(-1) == tokens).tolist()
        right = [all(hits[start:end]) for start, end in batch.bare_spans]
        return loss, sum(right) / max(1, len(right))


def tune(
    tower: CLIPVisionModel,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    phases: Sequence[Phase],
    log: Callable[[Mapping[str, object]], None],
    save: Callable[[Learner], None],
    resume: Path | None = None,
    seed: int = 0,
) -> Learner:
    """Train projector and LoRA through the phases, the tower frozen; the learning rate decays in the last
    one.

    ``log`` gets one mapping every ten steps, whose "right" is measured before the batch is trained on.
    ``save`` is called every 50 steps and after each phase.
    """
    torch.manual_seed(seed)
    image_token_id = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    learner = Learner(language, image_token_id)
    questions = load_questions("train")
    renderer = Renderer(tokenizer, image_token_id)
    patches = _see(tower, questions)
    if resume:
        learner.resume(resume)
    else:
        log({"stage": "align", "cosine": learner.align(patches, traits_from_answers(questions), tokenizer)})
    optimizer = MasterAdamW(
        [
            (list(learner.projector.parameters()), PROJECTOR_RATE),
            ([p for p in learner.language.parameters() if p.requires_grad], LORA_RATE),
        ]
    )
    learner.language.train()
    done = 0
    started = time.monotonic()
    for number, phase in enumerate(phases):
        stream = batches(questions, renderer, phase, tokenizer.pad_token_id, seed + 100 * number)
        losses: list[float] = []
        rights: list[float] = []
        for step, batch in zip(range(1, phase.steps + 1), stream, strict=False):
            loss, right = learner.forward(batch, torch.stack([patches[image] for image in batch.image_ids]))
            loss.backward()
            decay = 1 - (step - 1) / phase.steps if phase is phases[-1] else 1.0
            done += 1
            optimizer.step(min(done / WARM_UP, 1.0) * decay)
            losses.append(loss.item())
            rights.append(right)
            if done % SAVE_EVERY == 0:
                save(learner)
            if step % 10 and step != phase.steps:
                continue
            share = sum(rights) / len(rights)
            log(
                {
                    "stage": phase.name,
                    "step": step,
                    "steps": phase.steps,
                    "loss": round(sum(losses) / len(losses), 4),
                    "right": round(share, 3),
                    "seconds": round(time.monotonic() - started),
                }
            )
            losses.clear()
            rights.clear()
            if share >= phase.until:
                break
        save(learner)
    return learner


class MasterAdamW:
    """AdamW over float32 copies of bfloat16 parameters, which are too coarse to take its small steps."""

    def __init__(self, groups: Sequence[tuple[list[nn.Parameter], float]]) -> None:
        self._pairs = [
            (parameter, nn.Parameter(parameter.detach().float()))
            for parameters, _ in groups
            for parameter in parameters
        ]
        copies = iter(copy for _, copy in self._pairs)
        self._rates = [rate for _, rate in groups]
        self._optimizer = torch.optim.AdamW(
            [{"params": [next(copies) for _ in parameters], "lr": rate} for parameters, rate in groups],
            weight_decay=0.0,
        )

    def step(self, factor: float) -> None:
        """One update with every learning rate times ``factor``; gradients are clipped and cleared."""
        for parameter, copy in self._pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_([copy for _, copy in self._pairs], 1.0)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        with torch.no_grad():
            for parameter, copy in self._pairs:
                parameter.copy_(copy)


@torch.no_grad()
def _see(tower: CLIPVisionModel, questions: Sequence[Question]) -> dict[int, torch.Tensor]:
    """The frozen tower's patches (64, 192) in bfloat16 of each image, computed once, as the saved model will
    see them."""
    paths = {question.image_id: question.image_path for question in questions}
    pixels = load_pixels(list(paths.values()))
    tower = tower.to(torch.bfloat16).eval()
    seen = torch.cat([patch_features(tower, part.to(torch.bfloat16)) for part in pixels.split(200)])
    return dict(zip(paths, seen, strict=True))
