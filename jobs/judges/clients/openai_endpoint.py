"""Any endpoint with OpenAI's chat interface whose model takes images: OpenAI's own, or a local vLLM."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from jobs.judges.calls import CallOptions, Finish, Picture, Prompt, Reply
from jobs.judges.clients.errors import Service, error_of
from jobs.judges.clients.schemas import Schema, SchemaRefusals, is_strict
from jobs.judges.clients.texts import sendable, shorten

NO_KEY = "none"  # what an endpoint without keys is sent; the package wants some text

_FINISHES: dict[str, Finish] = {"stop": "complete", "length": "truncated", "content_filter": "safety"}
_FILTERED = ("content_filter", "content_policy_violation")


class OpenAiClient:
    """A `Client` for chat completions with images as data URLs.

    Many endpoints know no JSON schemas, or not for every model. Where one refuses it (400 or 422 that names the
    response format or the schema), the request is made again without one, and later ones to that model go without:
    two requests that one time, of which the refused is not billed.

    Args:
        key: sent as a bearer token; `NO_KEY` for an endpoint that wants none.
        url: the endpoint's address up to /v1; empty: OpenAI's, or what OPENAI_BASE_URL says.
        threads: requests that run at once.
    """

    def __init__(self, key: str, service: Service, *, url: str = "", threads: int = 16) -> None:
        self._service = service
        self._refusals = SchemaRefusals()
        # OpenAI's newer models take this name alone, other servers often know the older one alone.
        self._longest = "max_tokens" if url else "max_completion_tokens"
        self._client = openai.OpenAI(
            api_key=key,
            base_url=url or None,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                # A pool with fewer places than threads would make some wait and fail before they sent anything.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=max(threads, 1)),
                follow_redirects=False,  # they would carry the prompt elsewhere
            ),
        )

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        return self._refusals.ask(model, prompt.schema, lambda schema: self._ask(model, prompt, schema, options))

    def close(self) -> None:
        self._client.close()

    def _ask(self, model: str, prompt: Prompt, schema: Schema | None, options: CallOptions) -> Reply:
        fields: dict[str, Any] = {
            "model": model,
            "messages": _messages(prompt),
            "temperature": options.temperature,
            self._longest: options.max_output_tokens,
            "timeout": options.timeout,
        }
        if schema is not None:
            shape = {"name": "reply", "schema": schema, "strict": is_strict(schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": shape}
        try:
            answer = self._client.chat.completions.with_raw_response.create(**fields)
        except openai.APIStatusError as error:
            body = error.response.text
            told = error_of(body)
            if str(told.get("code")) in _FILTERED:  # Azure's way to say that the prompt was blocked
                return Reply("", "safety", 0, 0, shorten(str(told.get("message", ""))))
            raise self._service.refusal(error.status_code, error.response.headers, body, model) from None
        except Exception as error:
            raise self._service.unforeseen(error, options.timeout) from None
        return self._read(answer.http_response.text)

    def _read(self, body: str) -> Reply:
        try:
            content = json.loads(body)
            choices = content["choices"]
            return _reply(choices[0], content.get("usage") or {}) if choices else _nothing(content)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._service.no_answer(body) from None


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    content = [_part(part) for part in prompt.parts if part != ""]
    system = [{"role": "system", "content": sendable(prompt.system)}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, Picture):
        data = base64.b64encode(part.data).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}
    return {"type": "text", "text": sendable(part)}


def _reply(choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Reply:
    message = choice.get("message") or {}
    content = message.get("content") or ""
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(part.get("text") or "") for part in content if part.get("type") == "text")
    reason = str(choice.get("finish_reason") or "none")
    finish = _FINISHES.get(reason, "other")
    detail = "" if finish == "complete" else f"finish reason {reason}"
    if message.get("refusal"):
        finish, detail = "safety", shorten(f"refusal: {message['refusal']}")
    return Reply(str(content), finish, *_tokens(usage), detail)


def _nothing(content: Mapping[str, Any]) -> Reply:
    return Reply("", "other", *_tokens(content.get("usage") or {}), "The reply holds no choice.")


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int]:
    """(in, out); reasoning is among completion_tokens."""
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
