"""Gemini through `google-generativeai`, whose support Google has ended; `genai.py` is for its successor.

`google.generativeai.configure` sets one client for the whole process, so this one is built beside it and handed to
each `GenerativeModel`. One session of `requests` serves all threads.
"""

from __future__ import annotations

import json
import threading
import warnings
from typing import Any

from jobs.judges.calls import CallOptions, Picture, Prompt, Reply
from jobs.judges.clients.errors import Service
from jobs.judges.clients.gemini import UNBLOCKED, check_model, read_reply
from jobs.judges.clients.schemas import Schema, SchemaRefusals, gemini_schema, order_properties
from jobs.judges.clients.texts import sendable

with warnings.catch_warnings():  # it tells at each import that its support has ended; the settings say so too
    warnings.simplefilter("ignore", FutureWarning)
    import google.generativeai
    from google.ai import generativelanguage

from google.api_core.gapic_v1.client_info import ClientInfo
from google.auth.api_key import Credentials
from google.auth.transport.requests import AuthorizedSession
from requests import Response
from requests.adapters import HTTPAdapter

Fields = dict[str, Any]

sdk: Any = google.generativeai  # its types are half there, and say less than what it takes
protos: Any = sdk.protos


class GenerativeAiClient:
    """A `Client` for Gemini's REST interface.

    Where a model refuses JSON schemas the request is made again without one, and later ones go without: two
    requests that one time, of which the refused is not billed.

    Args:
        key: sent in the header x-goog-api-key, never in an address.
        url: another address than Google's.
        threads: connections that are kept.
    """

    def __init__(self, key: str, service: Service, *, url: str = "", threads: int = 16) -> None:
        self._service = service
        self._refusals = SchemaRefusals()
        credentials = Credentials(key)  # type: ignore[no-untyped-call]
        self._session = _Session(credentials, threads)
        place: Fields = {"host": url.rstrip("/")} if url else {}
        gemini: Any = generativelanguage.GenerativeServiceClient
        transport = gemini.get_transport_class("rest")(credentials=credentials, **place)
        # The package offers no other way to a session of one's own; at its last version, it will not change.
        transport._session = self._session
        about = ClientInfo(user_agent=f"genai-py/{sdk.__version__}")  # type: ignore[no-untyped-call]
        transport._prep_wrapped_messages(about)
        self._client = gemini(transport=transport)

    def ask(self, model: str, prompt: Prompt, options: CallOptions) -> Reply:
        check_model(self._service, model)
        return self._refusals.ask(model, prompt.schema, lambda schema: self._ask(model, prompt, schema, options))

    def close(self) -> None:
        self._session.close()  # type: ignore[no-untyped-call]

    def _ask(self, model: str, prompt: Prompt, schema: Schema | None, options: CallOptions) -> Reply:
        asked = sdk.GenerativeModel(
            model,
            system_instruction=sendable(prompt.system) or None,
            safety_settings=dict.fromkeys(UNBLOCKED, "BLOCK_NONE"),
            generation_config=_generation(schema, options),
        )
        asked._client = self._client  # else it would ask for the process's own
        contents = protos.Content(role="user", parts=[_part(part) for part in prompt.parts if part != ""])
        self._session.forget()
        failure: Exception = RuntimeError("the package sent nothing")
        try:
            asked.generate_content([contents], request_options={"timeout": options.timeout, "retry": None})
        except Exception as error:  # what came over the wire tells what it is
            failure = error
        answer = self._session.last()
        if answer is not None:
            status, headers, body = answer
            if status != 200:
                raise self._service.refusal(status, headers, body, model)
            return read_reply(self._service, body)
        if self._session.has_sent():
            raise self._service.broken(failure, options.timeout)
        raise self._service.unsent(failure)


class _Session(AuthorizedSession):
    """Sends once, keeps a connection for each thread, and remembers each thread's last answer.

    google-auth would send a request again after 401; here its key is refused once and that is told. Redirects are
    not followed, since they would carry the key elsewhere. The parameter $alt asks for numbers in place of names
    (finish reasons among them); it is left out, so that names which the package does not know yet come through.
    """

    def __init__(self, credentials: Credentials, threads: int) -> None:
        super().__init__(credentials, refresh_status_codes=(), max_refresh_attempts=0)  # type: ignore[no-untyped-call]
        for scheme in ("https://", "http://"):
            self.mount(scheme, HTTPAdapter(pool_maxsize=max(threads, 1), max_retries=0))
        self._here = threading.local()

    def request(self, method: str, url: str, data: Any = None, **others: Any) -> Response:  # type: ignore[override]
        others["params"] = [(name, value) for name, value in others.get("params") or () if name != "$alt"]
        data = _with_order(data)
        self._here.sent = True
        others["allow_redirects"] = False
        response: Response = super().request(method, url, data=data, **others)  # type: ignore[no-untyped-call]
        self._here.answer = (response.status_code, response.headers, response.content.decode("utf-8", "replace"))
        return response

    def forget(self) -> None:
        self._here.answer, self._here.sent = None, False

    def has_sent(self) -> bool:
        """Whether this thread's request has got as far as the network."""
        return bool(getattr(self._here, "sent", False))

    def last(self) -> tuple[int, Any, str] | None:
        """Status, headers and body of the answer to this thread's request; None where none came."""
        return getattr(self._here, "answer", None)


def _with_order(data: str) -> str:
    """The request with the order of its schema's keys, which the package's Schema has no field for.

    The package also writes a schema's properties in an order by chance; `required` alone keeps its own.
    """
    body = json.loads(data)
    schema = body.get("generationConfig", {}).get("responseSchema")
    if schema is None:
        return data
    order_properties(schema)
    return json.dumps(body)


def _generation(schema: Schema | None, options: CallOptions) -> Fields:
    generation: Fields = {
        "temperature": options.temperature,
        "max_output_tokens": options.max_output_tokens,
        "candidate_count": 1,
    }
    if schema is not None:
        generation |= {
            "response_mime_type": "application/json",
            "response_schema": _schema(gemini_schema(schema, ranges=False)),
        }
    return generation


def _schema(schema: Schema) -> Any:
    """As the package's Schema."""
    fields: Fields = {name: schema[name] for name in ("required", "enum") if name in schema}
    if "properties" in schema:
        fields["properties"] = {name: _schema(one) for name, one in schema["properties"].items()}
    if "items" in schema:
        fields["items"] = _schema(schema["items"])
    return protos.Schema(type_=protos.Type[schema["type"]], **fields)


def _part(part: str | Picture) -> Any:
    if isinstance(part, Picture):
        return protos.Part(inline_data=protos.Blob(mime_type=part.media_type, data=part.data))
    return protos.Part(text=sendable(part))
