"""From a job's configuration to somebody who asks: client, ledger and caller, the same for jobs and the desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.configs import ChecklistConfig, GradeConfig, JudgeConfig
from jobs.judges.caller import Caller
from jobs.judges.calls import CallOptions
from jobs.judges.clients.make import make_client
from jobs.judges.ledger import AHEAD, Budget, Ledger
from jobs.judges.terms import read_terms
from jobs.settings import Settings


@contextmanager
def connected(
    config: JudgeConfig | ChecklistConfig | GradeConfig,
    settings: Settings,
    ledger: Ledger,
    folder: Path,
    account: str,
    *,
    check: Callable[[], None],
    tell: Callable[[str], None],
    threads: int = 1,
    ahead: float = AHEAD,
) -> Iterator[Caller]:
    """A caller for the remote judge of this configuration; its client is closed at the end.

    Args:
        folder: the data folder's `judges/`, where the table of prices and limits is read anew for each request.
        account: whose money it is in the ledger.
        check, tell, ahead: see `Caller`.
        threads: how many will ask at once.

    Raises:
        CallError: no key is set.
    """
    assert config.judge in ("gemini", "openai")  # rules ask nobody
    client = make_client(config.judge, settings, threads=threads)
    try:
        yield Caller(
            client,
            ledger,
            lambda: read_terms(folder),
            account=account,
            budget=Budget(config.budget, config.max_requests),
            model=config.model,
            options=CallOptions(config.temperature, config.max_output_tokens, config.timeout),
            check=check,
            tell=tell,
            ahead=ahead,
        )
    finally:
        client.close()
