"""Gemini through `google-genai`, the package that Google supports."""

from __future__ import annotations

from typing import Any

import httpx2
from google import genai
from google.genai import errors, types

from jobs.judges.calls import CallOptions, Picture, Prompt, Reply
from jobs.judges.clients.errors import Service
from jobs.judges.clients.gemini import UNBLOCKED, check_model, read_reply
from jobs.judges.clients.schemas import Schema, SchemaRefusals, gemini_schema, order_properties
from jobs.judges.clients.texts import sendable


class GenAiClient:
    """A `Client` for Gemini; arguments and the second request without a schema as in `GenerativeAiClient`."""

    def __init__(self, key: str, service: Service, *, url: str = "", threads: int = 16) -> None:
        self._service = service
        self._refusals = SchemaRefusals()
        connections = max(threads, 1)
        self._client = genai.Client(
            api_key=key,
            vertexai=False,  # whatever the environment says: the key is the Gemini API's
            http_options=types.HttpOptions(
                base_url=url or "https://generativelanguage.googleapis.com/",  # else the environment may change it
                api_version="v1beta",
                # A pool with fewer places than threads would make some wait and fail before they sent anything.
                client_args={
                    "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=connections),
                    "follow_redirects": False,  # they would carry the key elsewhere
                },
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        check_model(self._service, model)
        return self._refusals.ask(model, prompt.schema, lambda schema: self._ask(model, prompt, schema, options))

    def close(self) -> None:
        self._client.close()

    def _ask(self, model: str, prompt: Prompt, schema: Schema | None, options: CallOptions) -> Reply:
        parts = [_part(part) for part in prompt.parts if part != ""]
        config = _config(prompt.system, schema, options)
        try:
            answer = self._client.models.generate_content(
                model=model, contents=types.Content(role="user", parts=parts), config=config
            )
        except errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            body = getattr(error.response, "text", "") or str(error.details)
            raise self._service.refusal(error.code, headers, body, model) from None
        except Exception as error:
            raise self._service.unforeseen(error, options.timeout) from None
        http = answer.sdk_http_response
        return read_reply(self._service, (http.body if http else "") or "")


def _config(system: str, schema: Schema | None, options: CallOptions) -> types.GenerateContentConfig:
    shape: dict[str, Any] = {}
    if schema is not None:
        asked = gemini_schema(schema, ranges=True)
        order_properties(asked)
        shape = {"response_mime_type": "application/json", "response_schema": types.Schema.model_validate(asked)}
    return types.GenerateContentConfig(
        system_instruction=sendable(system) or None,
        temperature=options.temperature,
        max_output_tokens=options.max_output_tokens,
        candidate_count=1,
        safety_settings=[
            types.SafetySetting(
                category=types.HarmCategory(category), threshold=types.HarmBlockThreshold.BLOCK_NONE
            )
            for category in UNBLOCKED
        ],
        # The package would ask again by itself, and pay again, where a model wants to go on or to call a function.
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        should_return_http_response=True,
        http_options=types.HttpOptions(timeout=max(1, round(options.timeout * 1000))),
        **shape,
    )


def _part(part: str | Picture) -> types.Part:
    if isinstance(part, Picture):
        return types.Part.from_bytes(data=part.data, mime_type=part.media_type)
    return types.Part(text=sendable(part))
