"""What the test server reads and writes: Google's and OpenAI's JSON, worded as the two word it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

Fields = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one request meets.

    Attributes:
        kind: ok, truncated, malformed (prose instead of JSON), blocked, recitation, finish (with `finish`), empty
            (no candidate at all), not json (200 with something else), prompt blocked, minute, day, bare (429 that
            says no more), limit (as minute: the server's own), poor (OpenAI: no money in the account), 400, 401,
            413, 500, 503, "503 page" (in HTML), 504, key, forbidden, model, large, no schema, timeout (held until
            the client leaves), drop (closed before a byte), reset (closed in the middle of the body).
        text: of the reply; None: as the server's `answer` says.
        finish: the finish reason as the provider writes it.
        retry: seconds to wait, as RetryInfo (OpenAI: in the message).
        retry_header: the header Retry-After, as it is written.
        usage: the token counts as the provider writes them; None: of the prompt's length.
        latency: seconds; None: the server's.
    """

    kind: str = "ok"
    text: str | None = None
    finish: str = ""
    retry: float | None = None
    retry_header: str | None = None
    usage: Fields | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Asked:
    """One request as it came. `schema` is JSON schema in small letters, whoever sent it."""

    dialect: Dialect
    path: str
    headers: dict[str, str]
    body: Fields
    model: str
    key: str
    system: str
    texts: tuple[str, ...]
    pictures: tuple[tuple[bytes, str], ...]
    order: str  # of the parts: t for a text, p for a picture
    schema: Fields | None
    temperature: float | None
    max_tokens: int | None

    @property
    def prompt_key(self) -> str:
        return prompt_key(self.texts, [data for data, _ in self.pictures])


@dataclass(frozen=True)
class Answer:
    status: int
    content: Any
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json; charset=UTF-8"

    @property
    def data(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class Dialect(Protocol):
    def read(self, path: str, headers: Mapping[str, str], body: Fields) -> Asked: ...

    def reply(self, asked: Asked, step: Step, text: str) -> Answer: ...

    def error(self, asked: Asked, step: Step) -> Answer: ...


def prompt_key(texts: Iterable[str], pictures: Iterable[bytes]) -> str:
    """The key of a prompt in `billed_by_prompt`: of its texts and pictures, without the system instruction."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    for data in pictures:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def dialect_of(path: str) -> Dialect | None:
    place = urlsplit(path).path
    if re.fullmatch(r"/v1beta/models/[^/]+:generateContent", place):
        return _Google()
    return _OpenAi() if place == "/v1/chat/completions" else None


WEB_PAGE = b"<html><body><h1>503</h1></body></html>"
PROSE = "I would rather not say it in JSON: the first answer is the best one, I'd give it a 4 or so."


_NUMBERS = {"STOP": 1, "MAX_TOKENS": 2, "SAFETY": 3, "RECITATION": 4, "OTHER": 5, "BLOCKLIST": 7, "SPII": 9}


class _Google:
    def read(self, path: str, headers: Mapping[str, str], body: Fields) -> Asked:
        parts = [part for content in body["contents"] for part in content["parts"]]
        generation = body.get("generationConfig", {})
        schema = generation.get("responseSchema")
        return Asked(
            dialect=self,
            path=path,
            headers={name.lower(): value for name, value in headers.items()},
            body=body,
            model=unquote(re.sub(r".*/models/|:generateContent.*", "", path)),
            key=headers.get("x-goog-api-key", ""),
            system="".join(part.get("text", "") for part in body.get("systemInstruction", {}).get("parts", [])),
            texts=tuple(part["text"] for part in parts if "text" in part),
            pictures=tuple(_inline(part["inlineData"]) for part in parts if "inlineData" in part),
            order="".join("t" if "text" in part else "p" for part in parts),
            schema=_json_schema(schema) if schema else None,
            temperature=generation.get("temperature"),
            max_tokens=generation.get("maxOutputTokens"),
        )

    def reply(self, asked: Asked, step: Step, text: str) -> Answer:
        if step.kind == "not json":
            return Answer(200, WEB_PAGE, media_type="text/html")
        usage = _google_usage(asked, text) if step.usage is None else step.usage
        if step.kind == "empty":
            return Answer(200, {"usageMetadata": usage, "modelVersion": asked.model})
        reasons = {"truncated": "MAX_TOKENS", "blocked": "SAFETY", "recitation": "RECITATION"}
        reason = step.finish or reasons.get(step.kind, "STOP")
        candidate: Fields = {"finishReason": self._enum(asked, reason), "index": 0}
        if step.kind in ("blocked", "recitation"):
            candidate["safetyRatings"] = [
                {"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH", "blocked": True}
            ]
        else:
            candidate["content"] = {"role": "model", "parts": [{"text": _shown(step, text)}]}
        body = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": asked.model, "responseId": "r1"}
        return Answer(200, body)

    def error(self, asked: Asked, step: Step) -> Answer:
        if step.kind == "prompt blocked":
            feedback = {"blockReason": self._enum(asked, step.finish or "PROHIBITED_CONTENT")}
            return Answer(200, {"promptFeedback": feedback, "usageMetadata": _google_usage(asked, "")})
        headers = {"retry-after": step.retry_header} if step.retry_header else {}
        if step.kind == "503 page":
            return Answer(503, WEB_PAGE, headers, "text/html")
        status, name, message, details = self._error(asked, step)
        if step.retry is not None:
            details.append(
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{step.retry:.3f}s"}
            )
        error = {"code": status, "message": message, "status": name, "details": details}
        return Answer(status, {"error": {key: value for key, value in error.items() if value}}, headers)

    def _error(self, asked: Asked, step: Step) -> tuple[int, str, str, list[Fields]]:
        kind, model = step.kind, asked.model
        quota = (
            "You exceeded your current quota, please check your plan and billing details. For more information on "
            "this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
        )
        known: dict[str, tuple[int, str, str, list[Fields]]] = {
            "minute": (
                429,
                "RESOURCE_EXHAUSTED",
                quota,
                [_violation("Minute")],
            ),
            "day": (429, "RESOURCE_EXHAUSTED", quota, [_violation("Day")]),
            "bare": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", []),
            "400": (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", []),
            "500": (500, "INTERNAL", "An internal error has occurred. Please retry.", []),
            "503": (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", []),
            "504": (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.", []),
            "key": (
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
                [
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "API_KEY_INVALID",
                        "domain": "googleapis.com",
                        "metadata": {"service": "generativelanguage.googleapis.com"},
                    }
                ],
            ),
            "401": (401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", []),
            "forbidden": (
                403,
                "PERMISSION_DENIED",
                f"Consumer 'api_key:{asked.key}' has been suspended.",
                [],
            ),
            "model": (
                404,
                "NOT_FOUND",
                f"models/{model} is not found for API version v1beta, or is not supported for generateContent. "
                "Call ListModels to see the list of available models and their supported methods.",
                [],
            ),
            "large": (400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes.", []),
            "413": (413, "", "Request Entity Too Large", []),
            "no schema": (400, "INVALID_ARGUMENT", f"JSON mode is not enabled for models/{model}", []),
        }
        return known["minute" if kind == "limit" else kind]

    def _enum(self, asked: Asked, name: str) -> Any:
        """As a number where the client has asked for numbers, as Google does."""
        wanted = parse_qs(urlsplit(asked.path).query).get("$alt", [""])[0]
        return _NUMBERS.get(name, name) if "enum-encoding=int" in wanted else name


class _OpenAi:
    def read(self, path: str, headers: Mapping[str, str], body: Fields) -> Asked:
        user = next(message for message in body["messages"] if message["role"] == "user")
        pictures = [part["image_url"]["url"] for part in user["content"] if part["type"] == "image_url"]
        shape = body.get("response_format", {}).get("json_schema")
        return Asked(
            dialect=self,
            path=path,
            headers={name.lower(): value for name, value in headers.items()},
            body=body,
            model=body["model"],
            key=headers.get("authorization", "").removeprefix("Bearer "),
            system="".join(message["content"] for message in body["messages"] if message["role"] == "system"),
            texts=tuple(part["text"] for part in user["content"] if part["type"] == "text"),
            pictures=tuple(_data_url(url) for url in pictures),
            order="".join("t" if part["type"] == "text" else "p" for part in user["content"]),
            schema=shape["schema"] if shape else None,
            temperature=body.get("temperature"),
            max_tokens=body.get("max_tokens", body.get("max_completion_tokens")),
        )

    def reply(self, asked: Asked, step: Step, text: str) -> Answer:
        if step.kind == "not json":
            return Answer(200, WEB_PAGE, media_type="text/html")
        tokens_in, tokens_out = _tokens(asked, text)
        usage: Fields = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
        reasons = {"truncated": "length", "blocked": "content_filter", "recitation": "content_filter"}
        blocked = step.kind in ("blocked", "recitation")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None if blocked else _shown(step, text)},
            "finish_reason": step.finish or reasons.get(step.kind, "stop"),
        }
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked.model,
            "choices": [] if step.kind == "empty" else [choice],
            "usage": usage if step.usage is None else step.usage,
        }
        return Answer(200, body, media_type="application/json")

    def error(self, asked: Asked, step: Step) -> Answer:
        headers = {"retry-after": step.retry_header} if step.retry_header else {}
        if step.kind == "503 page":
            return Answer(503, WEB_PAGE, headers, "text/html")
        status, message, kind, code = self._error(asked, step)
        if step.retry is not None:
            message += f" Please try again in {step.retry:g}s."
        error = {"message": message, "type": kind, "param": None, "code": code}
        return Answer(status, {"error": error}, headers, "application/json")

    def _error(self, asked: Asked, step: Step) -> tuple[int, str, str, str | None]:
        model, bad, limited = asked.model, "invalid_request_error", "rate_limit_exceeded"
        reached = f"Rate limit reached for {model} in organization org-1 on requests per"
        known: dict[str, tuple[int, str, str, str | None]] = {
            "minute": (429, f"{reached} min (RPM): Limit 3, Used 3, Requested 1.", "requests", limited),
            "day": (429, f"{reached} day (RPD): Limit 200, Used 200, Requested 1.", "requests", limited),
            "bare": (429, "Too many requests.", "requests", limited),
            "poor": (429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
            "400": (400, "We could not parse the JSON body of your request.", bad, None),
            "500": (500, "The server had an error while processing your request.", "server_error", None),
            "503": (503, "The engine is currently overloaded.", "server_error", None),
            "504": (504, "Gateway Time-out", "server_error", None),
            # OpenAI masks the key so: both ends can be read.
            "key": (401, "Incorrect API key provided: sk-proj-*********cdef.", bad, "invalid_api_key"),
            "forbidden": (403, f"The key {asked.key} has been suspended.", bad, None),
            "model": (404, f"The model `{model}` does not exist.", bad, "model_not_found"),
            "large": (413, "The request is too large.", bad, None),
            "413": (413, "The request is too large.", bad, None),
            "prompt blocked": (400, "The prompt triggered the content filter.", bad, "content_filter"),
            "no schema": (400, "'response_format' of type 'json_schema' is not supported.", bad, None),
        }
        return known[{"limit": "minute", "401": "key"}.get(step.kind, step.kind)]


def _shown(step: Step, text: str) -> str:
    if step.kind == "malformed" and step.text is None:
        return PROSE
    if step.kind == "truncated" and step.text is None:
        return text[: len(text) // 2]
    return text


def _tokens(asked: Asked, text: str) -> tuple[int, int]:
    return sum(map(len, asked.texts)) // 4 + 258 * len(asked.pictures), max(1, len(text) // 4)


def _google_usage(asked: Asked, text: str) -> Fields:
    tokens_in, tokens_out = _tokens(asked, text)
    return {
        "promptTokenCount": tokens_in,
        "candidatesTokenCount": tokens_out,
        "thoughtsTokenCount": 10,
        "totalTokenCount": tokens_in + tokens_out + 10,
    }


def _violation(time: str) -> Fields:
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [
            {
                "quotaMetric": "generativelanguage.googleapis.com/generate_content_paid_tier_requests",
                "quotaId": f"GenerateRequestsPer{time}PerProjectPerModel-PaidTier",
                "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
                "quotaValue": "600",
            }
        ],
    }


def _inline(blob: Fields) -> tuple[bytes, str]:
    plain = blob["data"].replace("-", "+").replace("_", "/")  # google-genai sends the alphabet for addresses
    return base64.b64decode(plain), blob.get("mimeType") or blob["mime_type"]  # Google reads both spellings


def _data_url(url: str) -> tuple[bytes, str]:
    head, data = url.split(",", 1)
    return base64.b64decode(data), head.removeprefix("data:").removesuffix(";base64")


_TYPES = ("unspecified", "string", "number", "integer", "boolean", "array", "object")


def _json_schema(schema: Fields) -> Fields:
    """Gemini's Schema, whose types are capitals or numbers, as JSON schema; keys in `propertyOrdering`'s order."""
    told = schema["type"]
    made: Fields = {"type": _TYPES[told] if isinstance(told, int) else told.lower()}
    if "properties" in schema:
        told_order = schema.get("propertyOrdering") or schema.get(
            "property_ordering"
        )  # as the two packages write it
        order: list[str] = told_order or list(schema["properties"])
        made["properties"] = {name: _json_schema(schema["properties"][name]) for name in order}
    if "items" in schema:
        made["items"] = _json_schema(schema["items"])
    return made | {name: schema[name] for name in ("required", "enum", "minimum", "maximum") if name in schema}
