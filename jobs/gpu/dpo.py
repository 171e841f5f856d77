"""The `dpo` job: TRL's DPOTrainer with LoRA on the language model's linear layers (paper.md, section 4).

Loss: Rafailov et al. 2023 (arXiv 2305.18290), equation 7, on summed log-probabilities. The reference is the base:
TRL switches the adapter off to get it, once for each answer in the life of a data folder (references.py). A pair
runs as one sequence (shared_prefix.py) where the model allows, from tensors made once (prepared.py).

Precision: the base stays in the dtype it was loaded in; the LoRA weights are float32 (PEFT's
`autocast_adapter_dtype`), since steps of 1e-4 times a small gradient vanish in bfloat16's 8 bits. Where the base
is in 16 bits the forward runs under autocast, so that the products are in 16 bits, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from jobs.configs import DpoConfig
from jobs.gpu.answering import end_tokens
from jobs.gpu.callbacks import Telling
from jobs.gpu.cards import dpo_card
from jobs.gpu.collate import PreferenceCollator, PreparedCollator, as_dataset, check_pairs
from jobs.gpu.loading import Loaded, claim_device, load
from jobs.gpu.lora import language_linears
from jobs.gpu.preferences import Pairs, add_references, open_book, read_pairs, stock_reason
from jobs.gpu.prepared import ROW_WISE
from jobs.gpu.sampling import LengthBatches
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from storage.errors import UserError

METHOD = "dpo"


class Trainer(DPOTrainer):
    """TRL's trainer, with held-out means that weigh every pair alike and no card of TRL's own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._batches: list[int] = []
        super().__init__(*arguments, **named)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written at the end."""

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        self._batches.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, *arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL averages the batches' means, which gives the pairs of a short last batch more weight.
        if not self.model.training and self._batches:
            for name, values in self._metrics["eval"].items():
                if len(values) == len(self._batches):
                    total = sum(value * size for value, size in zip(values, self._batches, strict=True))
                    self._metrics["eval"][name] = [total / sum(self._batches)]
            self._batches.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        lengths = (self.train_dataset if train_dataset is None else train_dataset)["length"]
        return LengthBatches(lengths, self.args.train_batch_size, self.args.data_seed)


def train(run: RunFolder, job: JobFile, config: DpoConfig, reporter: Reporter) -> None:
    """Train an adapter on the run folder's pairs and leave it, with its card, in `adapter/`.

    Metric events carry `loss`, `reward_*`, `logp_*`, `learning_rate`, `gradient_norm`, and the same as
    `heldout_*` at `config.evaluations` points, the last step among them.

    Raises:
        Stopped: asked to stop; a checkpoint of the last whole step is in `checkpoints/`.
        UserError: no pairs to train on, or rows that miss something.
        PlumbError: the loss is no longer a number.
    """
    rows = list(run.rows())
    check_pairs(run, rows)
    training = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "heldout"]
    if not training:
        raise UserError(
            f"The data set {config.dataset!r} has no pairs to train on ({len(held_out)} held-out ones). "
            "Freeze one with a smaller held-out part, or by a rule that gives pairs."
        )
    if config.evaluations and not held_out:
        reporter.note("The data set has no held-out pairs: there will be no held-out metrics.")
    reporter.check_stop()
    loaded = load(config.model, config.dtype, claim_device(job.device), Path(job.models_dir), reporter)
    reporter.check_stop()
    stock = stock_reason(loaded, config, reporter)
    book = open_book(job, loaded, stock is None)
    pairs = read_pairs(run, config, loaded, training, held_out, stock is None, reporter)
    telling = Telling(reporter, config.evaluations, len(held_out))
    trainer = make_trainer(run, config, loaded, pairs, telling, shared=stock is None)
    with answers_alone():
        add_references(run, config, trainer, pairs, book, reporter)
        trainer.train()
    if telling.stopped:
        step = trainer.state.global_step
        raise Stopped(f"stopped after step {step} of {trainer.state.max_steps}; checkpoints/ holds that step")
    reporter.phase("saving the adapter")
    save(run, job, config, trainer, telling, reporter, {"train": len(training), "held-out": len(held_out)})


@contextlib.contextmanager
def answers_alone() -> Iterator[None]:
    """Within it TRL takes log-probabilities at the answers' tokens alone, on every device.

    TRL 1.16 does so where Triton runs, and elsewhere multiplies the vocabulary with every token of image and
    prompt, to throw the result away: half of the demo's step on a CPU. The choice hangs on one private function;
    where a later TRL has none of that name, its own way is taken.
    """
    from trl.trainer import utils

    real = getattr(utils, "_use_triton", None)
    if real is None:
        yield
        return
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = real


def make_trainer(
    run: RunFolder,
    config: DpoConfig,
    loaded: Loaded,
    pairs: Pairs,
    telling: Telling,
    shared: bool,
) -> Trainer:
    """TRL's trainer with all its settings; the model in `loaded` gets the adapter.

    Args:
        shared: pairs run as one sequence each.
    """
    from transformers import PrinterCallback
    from trl.trainer.utils import disable_dropout_in_model

    # The base's own dropout would make the reference noisy. TRL's switch would turn LoRA's off, too.
    disable_dropout_in_model(loaded.model)
    tokenizer, prepared = loaded.processor.tokenizer, pairs.prepared
    collator: Any
    if shared:
        row_wise = loaded.model.config.model_type in ROW_WISE
        collator = PreparedCollator(prepared, tokenizer.pad_token_id, row_wise)
    else:
        collator = PreferenceCollator(run, loaded.processor, end_tokens(loaded.model, tokenizer))
    trainer = Trainer(
        model=loaded.model,
        args=trainer_settings(run, config, loaded),
        train_dataset=as_dataset(pairs.rows, pairs.training, prepared.pairs),
        eval_dataset=as_dataset(pairs.rows, pairs.held_out, prepared.pairs) if pairs.held_out else None,
        processing_class=loaded.processor,
        data_collator=collator,
        peft_config=LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=language_linears(loaded.model),
            task_type="CAUSAL_LM",
        ),
        callbacks=[telling],
    )
    if shared:
        SharedPrefix(trainer.model.get_base_model(), images_once=True).install()
    trainer.model.peft_config["default"].base_model_name_or_path = config.model
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_settings(run: RunFolder, config: DpoConfig, loaded: Loaded) -> TrlConfig:
    return TrlConfig(
        output_dir=str(run.checkpoints),
        beta=config.beta,
        loss_type=["sigmoid"],
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,  # below 1: a share of the steps
        weight_decay=config.weight_decay,
        bf16=loaded.model.dtype == torch.bfloat16,
        fp16=loaded.model.dtype == torch.float16,
        use_cpu=loaded.device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        max_length=None,  # cutting could take image tokens away
        disable_dropout=False,
        remove_unused_columns=False,
        eval_strategy="no",  # Telling asks for it at its points
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show the mean in place of a NaN
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=loaded.device.type == "cuda",
    )


def save(
    run: RunFolder,
    job: JobFile,
    config: DpoConfig,
    trainer: Trainer,
    telling: Telling,
    reporter: Reporter,
    counts: dict[str, int],
) -> None:
    """The adapter as safetensors, its card, and the event that tells of it."""
    name = config.name or f"{config.dataset}-dpo-{job.job_id}"
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(str(run.adapter), safe_serialization=True, save_embedding_layers=False)
    card = dpo_card(job, config, name, counts, telling.last)
    (run.adapter / "README.md").write_text(card, encoding="utf-8")
    reporter.event(
        "adapter",
        path=run.adapter.name,
        name=name,
        base_model=config.model,
        method=METHOD,
        settings=config.model_dump(mode="json"),
    )
