"""Log-probabilities of given tokens from hidden states, without the logits of all of them at once.

A preference loss needs one number a token: log p(target). Its gradient in the hidden state h is known as soon as
the softmax is there, W[target] − Σ p W, so it is taken in the forward, tile by tile, while the logits are still at
hand: two products with the vocabulary in all, where TRL's kernel makes three (it projects again in the backward)
and plain autograd keeps the logits (640 tokens × 32,064 words are 82 MB in float32, several times over).

That holds for a frozen head alone: the head's own gradient isn't made. LoRA never sits on the head (lora.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

#: Numbers a tile may have: 64 MB in float32.
TILE = 1 << 24


@dataclass
class TokenScores(ModelOutput):
    """What TRL's losses and metrics read; each of shape (rows, tokens − 1), 0 where there is no label."""

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    label_mask: torch.Tensor | None = None


def score_tokens(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability of each target, entropy, mean logit, and whether the target is the likeliest word.

    Args:
        hidden: (tokens, width), what the language model hands to its head.
        head: the frozen `nn.Linear` of the vocabulary.
        targets: (tokens,) ids.

    Returns:
        four tensors of shape (tokens,), the first with a gradient in `hidden`. In float32 whatever the dtype of
        `hidden`: a log-probability of −12 has no digits to lose.

    Raises:
        ValueError: the head is trained.
    """
    if head.weight.requires_grad:
        raise ValueError("the vocabulary's head is trained: score_tokens makes no gradient for it")
    scored: tuple[torch.Tensor, ...] = _Scores.apply(hidden, head.weight, head.bias, targets)
    return scored


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        tokens, words = len(targets), len(weight)
        wanted = ctx.needs_input_grad[0]
        slope = torch.empty_like(hidden) if wanted else None
        log_probs, entropy = (torch.empty(tokens, dtype=torch.float32, device=hidden.device) for _ in range(2))
        top = torch.empty(tokens, dtype=torch.bool, device=hidden.device)
        size = max(1, TILE // words)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, tokens, size):
                part = slice(start, start + size)
                near = hidden[part].to(weight.dtype)
                logits = torch.nn.functional.linear(near, weight, bias).float()
                logits -= logits.amax(dim=1, keepdim=True)
                picked = logits.gather(1, targets[part, None]).squeeze(1)
                weights = logits.exp()
                total = weights.sum(dim=1)
                log_probs[part] = picked - total.log()
                entropy[part] = total.log() - torch.linalg.vecdot(weights, logits) / total
                top[part] = picked == 0
                if slope is not None:
                    weights /= total[:, None]
                    slope[part] = weight[targets[part]] - weights.to(weight.dtype) @ weight
            # The mean of the logits is the logit of the mean word: no pass over them.
            mean = hidden.float() @ weight.mean(dim=0, dtype=torch.float32)
            if bias is not None:
                mean += bias.float().mean()
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy, mean, top)
        return log_probs, entropy, mean, top

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None, None
