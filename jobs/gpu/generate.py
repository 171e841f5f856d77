"""The `generate` job: n candidates for each sample, from the base or an adapter."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jobs.configs import GenerateConfig
from jobs.gpu.answering import Answerer
from jobs.gpu.decoding import Sampling
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import Loaded, load_for
from jobs.gpu.lora import attach, frozen_adapter, speaking
from jobs.gpu.prompts import check_messages, chunks, encode, from_run, lengths
from jobs.places import models_folder
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from jobs.written import written_before
from storage.errors import PlumbError, UserError

ADAPTER = "policy"


def generate(run: RunFolder, job: JobFile, config: GenerateConfig, reporter: Reporter) -> None:
    """Write a `candidate` event for every answer, sample by sample.

    A sample that can't be answered (its image is broken, it is too long) gets a note and the others go on.
    Candidates that an earlier attempt wrote are not written again.

    Raises:
        Stopped: asked to stop; what is written stays.
        PlumbError: no rows, or nothing could be answered; see also `loading.load`.
    """
    rows = list(run.rows())
    if not rows:
        raise UserError("There are no samples to answer; choose others, or clear 'only what is missing'.")
    written = written_before(run)
    waiting = [row for row in rows if len(written[row["sample_id"]]) < config.candidates]
    reporter.progress(len(rows) - len(waiting), len(rows), "samples")
    if not waiting:
        return
    loaded = load_for(config, claim_device(job.device), models_folder(run, job), reporter)
    model, speaker = loaded.model, None
    if config.adapter is not None:
        found = frozen_adapter(run, config.adapter)
        model, speaker = attach(loaded, {ADAPTER: (found.folder, found.name)}), ADAPTER
    reporter.phase("answering")
    answerer = Answerer(model, loaded.processor, reporter.note)
    work = Generation(run, config, reporter, loaded, answerer, written)
    count, failed = len(rows) - len(waiting), 0
    with speaking(model, speaker):
        for batch in chunks(waiting, config.batch_size):
            reporter.check_stop()
            failed += work.answer(batch)
            count += len(batch)
            reporter.progress(count, len(rows), "samples")
    if failed == len(waiting):
        raise PlumbError(f"None of the {failed} samples could be answered; the notes say why for each.")


class Generation:
    """Answers batches of rows and reports the candidates."""

    def __init__(
        self,
        run: RunFolder,
        config: GenerateConfig,
        reporter: Reporter,
        loaded: Loaded,
        answerer: Answerer,
        written: defaultdict[Any, set[int]],
    ) -> None:
        self._run, self._config, self._reporter = run, config, reporter
        self._loaded, self._answerer, self._written = loaded, answerer, written
        self._sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )

    def answer(self, rows: Any) -> int:
        """Answer a batch; returns how many of its samples failed, each with a note."""
        ready: list[tuple[Any, Any]] = []
        for row in rows:
            try:
                check_messages(row.get("messages"), f"Sample {row['sample_id']}")
                ready.append((row["sample_id"], from_run(self._run, row["messages"])))
            except UserError as error:
                self._reporter.note(f"Sample {row['sample_id']} is left out: {error}")
        fitting, inputs = self._fitting(ready)
        if fitting:
            samples = [sample for sample, _ in fitting]
            answers = self._answerer.answers(
                [messages for _, messages in fitting],
                samples,
                self._config.candidates,
                self._sampling,
                between=self._reporter.check_stop,
                inputs=inputs,
            )
            for sample, found in zip(samples, answers, strict=True):
                self._report(sample, found)
        return len(rows) - len(fitting)

    def _fitting(self, ready: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
        """Those whose prompt and answer fit the model's context, with their inputs; the others get a note."""
        if not ready:
            return [], {}
        inputs = encode(self._loaded.processor, [messages for _, messages in ready])
        context, room = self._loaded.context, self._config.max_new_tokens
        if context is None:
            return ready, inputs
        fits = []
        for (sample, messages), length in zip(ready, lengths(inputs), strict=True):
            if length + room <= context:
                fits.append((sample, messages))
            else:
                self._reporter.note(
                    f"Sample {sample} is left out: its prompt of {length} tokens and answers of {room} exceed "
                    f"the model's {context}. Shorten it, or lower max_new_tokens."
                )
        if len(fits) < len(ready) and fits:
            inputs = encode(self._loaded.processor, [messages for _, messages in fits])
        return fits, inputs

    def _report(self, sample: Any, answers: list[Any]) -> None:
        settings = {
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "max_new_tokens": self._config.max_new_tokens,
            "seed": self._config.seed,
            "model": self._config.model,
            "adapter": self._config.adapter,
            "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
        }
        if self._loaded.revision:
            settings["revision"] = self._loaded.revision
        for number, answer in enumerate(answers):
            if number in self._written[sample]:
                continue
            self._reporter.event(
                "candidate",
                sample_id=sample,
                number=number,
                text=answer.text(self._loaded.processor.tokenizer),
                tokens=len(answer.tokens),
                finish=answer.finish,
                settings=settings,
            )
