"""Bytes for people."""

from __future__ import annotations


def in_words(size: float) -> str:
    """Bytes for a person: `2.3 GB`, `40 MB`, `512 bytes`; decimal units, as disks are sold."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if size >= unit * (0.1 if name == "GB" else 0.9995):
            number = size / unit
            return f"{number:.1f} {name}" if number < 9.95 else f"{number:,.0f} {name}"
    return f"{size:,.0f} bytes"
