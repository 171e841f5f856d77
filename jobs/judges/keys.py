"""API keys: read from the environment when needed, held nowhere else, taken out of every text."""

from __future__ import annotations

import os

from jobs.judges.calls import Provider

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


def scrub(text: str) -> str:
    """The text without any key that is set: errors of libraries may quote a request."""
    for names in NAMES.values():
        for name in names:
            key = os.environ.get(name, "").strip()
            if len(key) >= 4:
                text = text.replace(key, HIDDEN)
    return text
