"""Train the demo VLM's committed parts: ``python -m jobs.gpu.demo.train --out FOLDER``.

About 25 minutes on two idle cores. Stage 1 trains the vision tower on colour and shape, stage 2 projector and a
LoRA on SmolLM2-135M-Instruct, both on easy-VQA's training split only. The answers are bare words (seven in ten) or
whole sentences; there is no text-only data, and what that does to the language model's text is what Plumb exists
to show and to repair.

Writes ``tower.safetensors``, ``projector.safetensors``, ``lora/`` (a PEFT adapter) and ``training.log`` (JSON
lines). Parts are saved as the training goes on, so that it can be stopped and the parts assembled at any time.

Where other processes share the cores, set ``OMP_WAIT_POLICY=PASSIVE``: by default threads that wait for each other
spin, and one busy neighbour made a step five times as slow.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModel

from jobs.gpu.demo.build import (
    LORA_FOLDER,
    PROJECTOR_FILE,
    TOWER_FILE,
    build_tokenizer,
    build_tower,
    load_language_model,
)
from jobs.gpu.demo.tower import EPOCHS, train_tower
from jobs.gpu.demo.tuning import PHASES, Learner, tune


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts and training.log")
    parser.add_argument("--tower", type=Path, help="use this trained tower.safetensors and skip stage 1")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of stage 1")
    parser.add_argument("--phases", nargs="*", type=int, help="steps of stage 2's three phases, at most")
    parser.add_argument("--resume", type=Path, help="go on from this folder's projector and LoRA in stage 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "training.log").open("a", encoding="utf-8") as stream:

        def log(entry: Mapping[str, object]) -> None:
            line = json.dumps(entry)
            print(line, flush=True)
            stream.write(line + "\n")
            stream.flush()

        command = shlex.join(["python", "-m", "jobs.gpu.demo.train", *sys.argv[1:]])
        log(
            {
                "command": command,
                "torch": torch.__version__,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        tower = _tower(options.tower, options.epochs, options.seed, log)
        steps = options.phases or [phase.steps for phase in PHASES]
        phases = [replace(phase, steps=limit) for phase, limit in zip(PHASES, steps, strict=True) if limit]
        save_part(tower, options.out / TOWER_FILE)
        tune(
            tower,
            load_language_model(),
            build_tokenizer(),
            phases=phases,
            log=log,
            save=lambda learner: save_learner(learner, options.out),
            resume=options.resume,
            seed=options.seed,
        )
        log({"finished": datetime.now(UTC).isoformat(timespec="seconds")})


def save_part(module: nn.Module, path: Path) -> None:
    """Save a module's weights in bfloat16.

    Whole-number buffers (position ids) are left out: they follow from the code.
    """
    state = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(state, path)


def save_learner(learner: Learner, folder: Path) -> None:
    """Save projector and LoRA into ``folder``."""
    save_part(learner.projector, folder / PROJECTOR_FILE)
    learner.language.save_pretrained(folder / LORA_FOLDER)
    # PEFT's empty model card; ours stands beside the parts.
    (folder / LORA_FOLDER / "README.md").unlink(missing_ok=True)


def _tower(
    trained: Path | None, epochs: int, seed: int, log: Callable[[Mapping[str, object]], None]
) -> CLIPVisionModel:
    if trained is None:
        return train_tower(log, seed=seed, epochs=epochs)
    tower = build_tower()
    tower.load_state_dict({name: tensor.float() for name, tensor in load_file(trained).items()})
    return tower


if __name__ == "__main__":
    main()
