"""Outside endpoints as the environment names them: where each is, and with which key it is asked.

Addresses and keys come from the environment alone. Whoever could set them from a page could have keys, and other
people's conversations, sent to a server of his own.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from storage.errors import UserError
from storage.speakers import ENDPOINT_NAME

VARIABLE = "PLUMB_ENDPOINTS"
KEY_PREFIX = "PLUMB_ENDPOINT_KEY_"

_EXAMPLE = "office=http://127.0.0.1:8000/v1,lab=https://models.example/v1"


def read_endpoints(given: object) -> dict[str, str]:
    """{name: address up to /v1} of `NAME=URL,NAME=URL` or of a mapping.

    Raises:
        UserError: a name or an address cannot be used. No address is quoted: it may hold a password.
    """
    if isinstance(given, str):
        pairs = [_parted(number, part) for number, part in enumerate(_parts(given), start=1)]
    elif isinstance(given, Mapping):
        pairs = [(str(name), str(url)) for name, url in given.items()]
    else:
        raise UserError(f"{VARIABLE} cannot be read. Write NAME=URL with commas between them, like {_EXAMPLE}.")
    found: dict[str, str] = {}
    for name, url in pairs:
        if not re.fullmatch(ENDPOINT_NAME, name):
            raise UserError(
                f"{VARIABLE}: {name[:60]!r} cannot be an endpoint's name. Use small letters, digits and -, at "
                f"most 40 of them, as in {_EXAMPLE}."
            )
        if name in found:
            raise UserError(f"{VARIABLE} names {name!r} twice. Give each endpoint a name of its own.")
        found[name] = _checked(name, url)
    return found


def key_variable(endpoint: str) -> str:
    """The environment variable that holds an endpoint's key, if it wants one."""
    return KEY_PREFIX + endpoint.upper().replace("-", "_")


def endpoint_key(endpoint: str) -> str | None:
    """The endpoint's key, or None where none is set.

    Raises:
        UserError: it holds a character that no key has.
    """
    key = os.environ.get(key_variable(endpoint), "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"{key_variable(endpoint)} holds a character that no key has (a line break or a blank, say). Set it "
            "anew, in one line, and start Plumb again."
        )
    return key


def endpoint_keys() -> Iterator[str]:
    """All keys of endpoints that are set, whether an endpoint of that name is known or not."""
    for name, value in os.environ.items():
        if name.startswith(KEY_PREFIX) and value.strip():
            yield value.strip()


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parted(number: int, part: str) -> tuple[str, str]:
    name, sign, url = part.partition("=")
    if not sign or "/" in name or "@" in name:
        raise UserError(
            f"{VARIABLE}: entry {number} has no name. Write NAME=URL with commas between them, like {_EXAMPLE}."
        )
    return name.strip(), url.strip()


def _checked(name: str, url: str) -> str:
    """The address without a slash at its end. Raises UserError where it is none, or tells too much."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a wrong port shows only when it is asked for
    except ValueError:
        raise UserError(
            f"{VARIABLE}: the address of {name!r} cannot be read. Write it like http://127.0.0.1:8000/v1."
        ) from None
    if "@" in parts.netloc:
        raise UserError(
            f"{VARIABLE}: the address of {name!r} holds a user's name or a password, which addresses on pages and "
            f"in logs would show. Leave it out, and put the key into {key_variable(name)}."
        )
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise UserError(
            f"{VARIABLE}: the address of {name!r} has something behind its path (? or #). Leave it out; a key "
            f"belongs into {key_variable(name)}."
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"{VARIABLE}: the address of {name!r} must begin with http:// or https:// and a host, like "
            "http://127.0.0.1:8000/v1."
        )
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise UserError(
            f"{VARIABLE}: the address of {name!r} holds a character that no address has; write it anew."
        )
    if parts.path.rstrip("/").endswith(("/completions", "/models")):
        raise UserError(
            f"{VARIABLE}: the address of {name!r} goes too far. Give it up to what stands before "
            "/chat/completions, mostly /v1."
        )
    return url.rstrip("/")
