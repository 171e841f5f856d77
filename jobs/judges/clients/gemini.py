"""What the two clients for Gemini share: safety settings, and how a reply's JSON is read.

Both read the JSON that came over the wire: google-generativeai's own classes know neither thinking tokens nor the
newer finish reasons, and raise where a reply has no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jobs.judges.calls import Finish, Reply
from jobs.judges.clients.errors import Service
from jobs.judges.clients.texts import shorten

# A judge reads answers that may be bad; what they hold must not keep it from judging. The provider still blocks
# where it must.
UNBLOCKED = (
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
)
_FINISHES: dict[str, Finish] = {
    "STOP": "complete",
    "MAX_TOKENS": "truncated",
    "SAFETY": "safety",
    "BLOCKLIST": "safety",
    "PROHIBITED_CONTENT": "safety",
    "SPII": "safety",
    "IMAGE_SAFETY": "safety",
    "IMAGE_PROHIBITED_CONTENT": "safety",
    "MODEL_ARMOR": "safety",
    "JAILBREAK": "safety",
    "RECITATION": "recitation",
    "IMAGE_RECITATION": "recitation",
}


def check_model(service: Service, model: str) -> None:
    """Raise CallError where a name cannot be a model's: it becomes part of the address."""
    if not re.fullmatch(r"(models/|tunedModels/)?[A-Za-z0-9][\w.:@-]*", model):
        raise service.failure(
            "model", f"{model!r} cannot be the name of a Gemini model; write it as in gemini-2.5-flash."
        )


def read_reply(service: Service, body: str) -> Reply:
    """A GenerateContentResponse as JSON → what the model said.

    Raises:
        CallError: "server", possibly billed: the body is none.
    """
    try:
        content = json.loads(body)
    except ValueError:
        raise service.no_answer(body) from None
    if not isinstance(content, dict) or not {"candidates", "promptFeedback", "usageMetadata"} & set(content):
        raise service.no_answer(body)
    try:
        return _read(content)
    except (AttributeError, KeyError, TypeError, ValueError):  # not shaped as documented
        raise service.no_answer(body) from None


def _read(content: Mapping[str, Any]) -> Reply:
    tokens_in, tokens_out = _tokens(content.get("usageMetadata") or {})
    candidates = content.get("candidates") or []
    if not candidates:
        feedback = content.get("promptFeedback") or {}
        reason = str(feedback.get("blockReason") or "")
        words = _words("prompt blocked", reason, feedback, "blockReasonMessage")
        finish = _FINISHES.get(reason, "other") if reason else "other"
        return Reply("", finish, tokens_in, tokens_out, words if reason else "The reply holds no candidate.")
    candidate = candidates[0]
    parts = (candidate.get("content") or {}).get("parts") or []
    text = "".join(str(part.get("text") or "") for part in parts if not part.get("thought"))
    reason = str(candidate.get("finishReason") or "FINISH_REASON_UNSPECIFIED")
    finish = _FINISHES.get(reason, "other")
    words = "" if finish == "complete" else _words("finish reason", reason, candidate, "finishMessage")
    return Reply(text, finish, tokens_in, tokens_out, words)


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int]:
    """(in, out). Thinking is paid as output. Whoever leaves a count out is read as saying 0."""
    tokens_in = int(usage.get("promptTokenCount") or 0) + int(usage.get("toolUsePromptTokenCount") or 0)
    said = int(usage.get("candidatesTokenCount") or 0) + int(usage.get("thoughtsTokenCount") or 0)
    return tokens_in, said


def _words(what: str, reason: str, holder: Mapping[str, Any], message: str) -> str:
    """The provider's own words on a finish: reason, message, and what was rated as harmful."""
    harms = [
        f"{str(rating.get('category', '')).removeprefix('HARM_CATEGORY_')} {rating.get('probability', '')}".strip()
        for rating in holder.get("safetyRatings") or []
        if rating.get("blocked") or str(rating.get("probability", "")) in ("MEDIUM", "HIGH")
    ]
    told = [f"{what} {reason}", str(holder.get(message) or ""), ", ".join(harms)]
    return shorten("; ".join(part for part in told if part))
