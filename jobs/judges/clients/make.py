"""The client that the settings name. The packages are imported only when one is made: each takes half a second."""

from __future__ import annotations

from urllib.parse import urlsplit

from jobs.judges import keys
from jobs.judges.calls import CallError, Client, Provider
from jobs.judges.clients.errors import Service
from jobs.settings import Settings
from storage.errors import UserError


def make_client(provider: Provider, settings: Settings, *, threads: int = 16) -> Client:
    """A client with the key from the environment.

    Args:
        threads: how many will ask at once.

    Raises:
        CallError: "no key": none is set where one is needed; the text names the variables.
    """
    try:
        keys.need_key(provider, settings)
    except UserError as error:
        raise CallError("no key", str(error)) from None
    key = keys.api_key(provider)
    service = service_of(provider, settings)
    if provider == "openai":
        from jobs.judges.clients.openai_endpoint import NO_KEY, OpenAiClient

        return OpenAiClient(key or NO_KEY, service, url=settings.openai_url, threads=threads)
    assert key is not None  # need_key has seen to it
    if settings.gemini_client == "google-genai":
        from jobs.judges.clients.genai import GenAiClient

        return GenAiClient(key, service, url=settings.gemini_url, threads=threads)
    from jobs.judges.clients.generativeai import GenerativeAiClient

    return GenerativeAiClient(key, service, url=settings.gemini_url, threads=threads)


def service_of(provider: Provider, settings: Settings) -> Service:
    """How messages name the provider and its settings. An address is told without name and password in it."""
    name = keys.key_name(provider) or keys.NAMES[provider][0]
    if provider == "gemini":
        return Service("Gemini", name, "PLUMB_GEMINI_URL")
    if not settings.openai_url:
        return Service("OpenAI", name, "PLUMB_OPENAI_URL")
    host = urlsplit(settings.openai_url).netloc.rpartition("@")[2]
    return Service(f"The endpoint at {host}", name, "PLUMB_OPENAI_URL")
