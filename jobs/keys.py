"""The secret that a job's model process and the web process share; it is computed, never stored or logged."""

from __future__ import annotations

import hashlib
import hmac

from storage.folder import DataFolder

SERVE_KEY = "PLUMB_SERVE_KEY"


def serve_key(folder: DataFolder, job_id: int) -> str:
    """The bearer token of the `serve` job's loopback endpoint, as the worker finds it in `SERVE_KEY`."""
    return hmac.new(folder.key(), f"serve:{job_id}".encode(), hashlib.sha256).hexdigest()
