"""API keys: read from the environment when needed, held nowhere else, taken out of every text."""

from __future__ import annotations

import os

from jobs.judges.calls import Provider
from jobs.outside_names import endpoint_keys
from jobs.settings import Settings
from storage.errors import UserError

NAMES: dict[Provider, tuple[str, ...]] = {
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
}
HIDDEN = "•••"


def key_name(provider: Provider) -> str | None:
    """The environment variable that holds the provider's key, or None where none is set."""
    return next((name for name in NAMES[provider] if os.environ.get(name, "").strip()), None)


def api_key(provider: Provider) -> str | None:
    name = key_name(provider)
    return os.environ[name].strip() if name else None


def need_key(judge: str, settings: Settings) -> None:
    """Raise UserError where the judge's provider has no key, or one that cannot be.

    A local endpoint may go without one; a judge that asks nobody needs none.
    """
    provider = next((known for known in NAMES if known == judge), None)
    if provider is None:
        return
    key, name = api_key(provider), key_name(provider)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"{name} holds a character that no key has (a line break or a blank, say). Set it anew, in one line, "
            "and start Plumb again."
        )
    if provider == "gemini" and key is None:
        raise UserError(
            "No key for Gemini is set. Set GEMINI_API_KEY (or GOOGLE_API_KEY) in the environment and start Plumb "
            "again; the key is read from there and stored nowhere."
        )
    if provider == "openai" and key is None and not settings.openai_url:
        raise UserError(
            "No OpenAI-compatible endpoint is set. Set PLUMB_OPENAI_URL to its address (http://127.0.0.1:8000/v1, "
            "say), and OPENAI_API_KEY where it asks for a key, and start Plumb again."
        )


def scrub(text: str) -> str:
    """The text without any key that is set: errors of libraries may quote a request."""
    keys = [os.environ.get(name, "").strip() for names in NAMES.values() for name in names]
    # The longest first: one key may be the beginning of another, whose rest would stay.
    for key in sorted([*keys, *endpoint_keys()], key=len, reverse=True):
        if len(key) >= 4:
            text = text.replace(key, HIDDEN).replace(repr(key)[1:-1], HIDDEN)
    return text
