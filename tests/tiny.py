"""Tiny vision-language models built in code: no hub, no files of ours, a second to make.

A LLaVA of about 40,000 parameters with random weights, a byte-level tokenizer (so that any text, and half a
character, can occur) and a processor, saved as `save_pretrained` does; the Auto classes load it offline.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.runs import JobFile, RunFolder

IMAGE_TOKEN = "<image>"
END = "<|im_end|>"
IMAGE_SIDE = 16
PATCH = 8
IMAGE_TOKENS = (IMAGE_SIDE // PATCH) ** 2
CONTEXT = 256

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> Any:
    """A byte-level tokenizer: 256 bytes, four special tokens, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token=END,
        padding_side="left",
        additional_special_tokens=["<|im_start|>", IMAGE_TOKEN],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_processor() -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = make_tokenizer()
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=TEMPLATE,
    )


def make_model(processor: Any, seed: int = 0) -> Any:
    """A LLaVA with random weights large enough that answers to different images differ."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@functools.cache
def tiny_llava() -> Path:
    """A folder with the tiny LLaVA, made once a process; treat it as read-only."""
    import torch

    # On a loaded machine torch's threads wait for each other: eight times as slow on models of this size.
    torch.set_num_threads(1)
    parent = Path(tempfile.mkdtemp(prefix="plumb-tiny-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / "tiny-llava"
    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def demo_vlm() -> tuple[Path, tuple[tuple[str, float], ...]]:
    """(a folder with the demo VLM, what was told while it was assembled), once a process; 20 seconds, 280 MB.

    Treat the folder as read-only.
    """
    import torch

    from jobs.gpu.demo.assemble import ensure_demo

    torch.set_num_threads(1)
    parent = Path(tempfile.mkdtemp(prefix="plumb-demo-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    told: list[tuple[str, float]] = []
    folder = ensure_demo(parent / "demo-vlm", lambda message, share: told.append((message, share)))
    return folder, tuple(told)


def picture(colour: str = "red", side: int = 20) -> Image.Image:
    """A picture with a little structure, so that colours and places both matter."""
    image = Image.new("RGB", (side, side), colour)
    image.paste("white", (2, 2, side // 2, side // 3))
    return image


def ask(text: str, *images: Any) -> list[dict[str, Any]]:
    """One user turn: images first, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def store(folder: Path, image: Image.Image) -> tuple[str, Path]:
    """Save a picture by content address; returns (its name in rows, the file)."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".png"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(buffer.getvalue())
    return name, folder / name


def frozen_run(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    rows: Iterable[dict[str, Any]] = (),
    images: Iterable[tuple[str, Path]] = (),
    adapters: dict[int, Path] | None = None,
    device: str = "cpu",
) -> RunFolder:
    """A run folder as the supervisor freezes it; the model is the tiny LLaVA unless config names another."""
    run = RunFolder(folder)
    shas = {key: hashlib.sha256(str(path).encode()).hexdigest() for key, path in (adapters or {}).items()}
    job = JobFile(
        job_id=7,
        kind=kind,
        config={"model": str(tiny_llava()), **config},
        user="ada",
        device=device,
        dataset_hash="d" * 64 if kind == "dpo" else None,
        models_dir=str(folder.parent / "models"),
        created_at="2026-11-22T20:00:00+00:00",
    )
    Path(job.models_dir).mkdir(parents=True, exist_ok=True)
    run.freeze(job, rows, images, [(shas[key], path) for key, path in (adapters or {}).items()])
    if adapters:
        listed = {str(key): {"sha256": shas[key], "name": f"adapter {key}"} for key in adapters}
        (folder / "data" / "adapters.json").write_text(json.dumps(listed), encoding="utf-8")
    return run


def events(run: RunFolder, kind: str | None = None) -> list[dict[str, Any]]:
    """The run's events, or those of one kind."""
    found = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    return [event for event in found if kind in (None, event["kind"])]
