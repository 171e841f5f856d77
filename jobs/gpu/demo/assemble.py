"""Assemble the demo VLM from the wheel's SmolLM2 and the committed parts.

On the command line: ``python -m jobs.gpu.demo.assemble FOLDER``.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, float32
from transformers import LlamaForCausalLM

from jobs.gpu.demo.build import (
    LORA_FOLDER,
    PROJECTOR_FILE,
    TOWER_FILE,
    build_model,
    build_processor,
    find_gguf,
    load_language_model,
)
from storage.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
CARD = "README.md"


def ensure_demo(target: Path, progress: Callable[[str, float], None] = lambda message, share: None) -> Path:
    """Assemble the demo VLM into ``target`` unless it is there already, and return ``target``.

    The folder (about 280 MB) loads with plain ``AutoModelForImageTextToText.from_pretrained`` and
    ``AutoProcessor.from_pretrained``, offline. It appears by one rename, so a folder that exists is whole;
    what an interrupted call left behind is cleared by the next one. Of several processes one assembles, the
    others wait.

    ``progress`` gets a sentence and a share from 0 to 1. Takes 20 to 30 seconds on two cores, and about 1.5
    GB of memory. Raises UserError where the wheel or a committed part is missing, or where ``target`` is
    something else.
    """
    if _is_assembled(target):
        return target
    find_gguf()
    _check_parts()
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("Waiting for another process that assembles the demo model", 0.0)
        lock.acquire()
    try:
        if _is_assembled(target):
            return target
        if target.exists():
            raise UserError(
                f"The demo model can't be assembled in {target}: "
                "something else is there, without a config.json. Move it away."
            )
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _assemble(partial, progress)
        os.replace(partial, target)
    finally:
        lock.release()
    progress("The demo model is ready", 1.0)
    return target


def _is_assembled(target: Path) -> bool:
    return (target / "config.json").is_file()


def _check_parts() -> None:
    for name in (TOWER_FILE, PROJECTOR_FILE, f"{LORA_FOLDER}/adapter_model.safetensors", CARD):
        if not (WEIGHTS / name).is_file():
            raise UserError(
                f"The demo model's part {name} is missing from {WEIGHTS}. Restore it with `git checkout`, "
                "or train it anew with `python -m jobs.gpu.demo.train`."
            )


def _assemble(folder: Path, progress: Callable[[str, float], None]) -> None:
    progress("Reading the tokenizer", 0.02)
    processor = build_processor()
    progress("Unpacking SmolLM2-135M-Instruct", 0.3)
    # Merged in float32 and rounded once: in bfloat16 small parts of the adapter would be lost against large
    # weights.
    language = load_language_model(float32)
    progress("Merging the adapter", 0.75)
    merged: LlamaForCausalLM = PeftModel.from_pretrained(language, WEIGHTS / LORA_FOLDER).merge_and_unload()
    model = build_model(merged, _part(TOWER_FILE), _part(PROJECTOR_FILE), processor.image_token_id)
    progress("Saving the model", 0.85)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copyfile(WEIGHTS / CARD, folder / CARD)


def _part(name: str) -> dict[str, Tensor]:
    return load_file(WEIGHTS / name)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    try:
        ensure_demo(target, lambda message, share: print(f"{share:4.0%}  {message}", flush=True))
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(target)


if __name__ == "__main__":
    main()
