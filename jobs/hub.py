"""A hub's models: which commit a name stands for, what is in the hub's cache, and what the hub says. Torch-free.

The cache is huggingface_hub's own (HF_HOME, HF_HUB_CACHE), shared with whatever else on this machine loads models.
The token comes from HF_TOKEN in the environment alone, and goes into requests' headers alone. HF_ENDPOINT names
another hub than the public one, HF_HUB_OFFLINE=1 forbids asking any.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.config_base import JobConfig, ModelConfig
from jobs.configs import DownloadConfig
from jobs.models import is_commit, is_hub_name
from jobs.push import ENDPOINT, TOKEN, need_token, scrub
from storage.errors import PlumbError, UserError

OFFLINE = "HF_HUB_OFFLINE"
MAIN = "main"
#: Seconds that one question may take; a submit waits for it.
ASK_SECONDS = 8.0
#: Seconds that an answer is remembered: the jobs of a sweep, and a check before a submit, ask once.
REMEMBER_SECONDS = 60.0


class Unreachable(PlumbError):
    """The hub gave no answer, or none that says anything of the model: another try may."""

    cause = "network"  # jobs.verdicts.Cause.NETWORK, by which the failure policy tries again


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model on the hub.

    Attributes:
        size: bytes; None where the hub doesn't say.
        blob: its name in the cache: the sha256 of a large file, git's sha1 of a small one; "" where it isn't told.
    """

    name: str
    size: int | None
    blob: str


@dataclass(frozen=True)
class Listing:
    """A model's files at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


def offline() -> bool:
    """Whether asking the hub is forbidden, by the environment in which this process began."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def endpoint() -> str | None:
    """Another hub's address; None for the public one."""
    return os.environ.get(ENDPOINT, "").rstrip("/") or None


def token() -> str | bool:
    """The environment's token; False, which sends none, where there isn't one: no other place is looked into.

    Raises:
        UserError: one is set that cannot be a token.
    """
    return need_token() if os.environ.get(TOKEN, "").strip() else False


def headers() -> dict[str, str]:
    """Of a request that this module's callers make themselves."""
    own = token()
    return {"User-Agent": "plumb", **({"Authorization": f"Bearer {own}"} if own else {})}


# What is on this machine


def store_of(name: str) -> Path:
    """The model's folder in the hub's cache, there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=name, repo_type="model")


def cached_commit(name: str, revision: str = "") -> str | None:
    """The commit that a revision stands for in the cache; None where the cache doesn't know it.

    Where `main` isn't known (a commit was fetched by its number) and there is one commit alone, that one counts.
    """
    store = store_of(name)
    held = _snapshots(store)
    if is_commit(revision):
        return revision if revision in held else None
    try:
        commit = (store / "refs" / (revision or MAIN)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    if commit in held:
        return commit
    return next(iter(held)) if not revision and not commit and len(held) == 1 else None


def snapshot(name: str, revision: str = "") -> Path | None:
    """The folder of a hub's model in the cache, which may lack some of the files; None where there is none."""
    commit = cached_commit(name, revision)
    return store_of(name) / "snapshots" / commit if commit else None


def _snapshots(store: Path) -> set[str]:
    """The commits whose config.json is in the cache."""
    try:
        return {folder.name for folder in (store / "snapshots").iterdir() if (folder / "config.json").is_file()}
    except OSError:
        return set()


def lacking_weights(folder: Path) -> list[str]:
    """Files of weights that a model's folder should have and hasn't, by its index; empty for a whole one.

    Raises:
        UserError: as `weights_named`.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [] if whole.is_file() else [whole.name]
    return [name for name in weights_named(index) if not (folder / name).is_file()]


def weights_named(index: Path) -> list[str]:
    """The files of weights that an index names, each once, in order.

    Raises:
        UserError: it cannot be read; or it names what is no safetensors file (a pickle can run code when it is
            read), or lies outside of the model's folder.
    """
    try:
        named = list(dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = f"{index.name} in {index.parent.name}"
        raise UserError(f"{where} cannot be read ({error}); fetch it again.") from error
    for name in named:
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{index.name} in {index.parent.name} names {name!r} among the weights' files, which is no "
                "safetensors file in that folder. Save the model as safetensors (save_pretrained does), or choose "
                "another."
            )
    return sorted(named)


# What a job works with


def pinned(config: JobConfig, adapters: Sequence[Path] = ()) -> JobConfig:
    """A job's configuration with the revision of its model pinned to a commit, as `pin` does.

    Args:
        adapters: folders of the adapters that the job works with: where no revision is given, theirs is taken.

    Raises:
        UserError: the hub has no such model or revision; a revision of what isn't on a hub.
    """
    if isinstance(config, DownloadConfig):
        return config.model_copy(update={"revision": pin(config.model, config.revision, fresh=True)})
    if not isinstance(config, ModelConfig):
        return config
    revision = config.revision
    if not revision and is_hub_name(config.model):
        theirs = {found for folder in adapters if (found := adapter_revision(folder))}
        revision = theirs.pop() if len(theirs) == 1 else ""
    return config.model_copy(update={"revision": pin(config.model, revision)})


def pin(name: str, revision: str = "", *, fresh: bool = False) -> str:
    """The commit that a model's revision stands for now; "" for `demo` and folders.

    The cache decides, so that a model that is here stays as it is; else the hub is asked. Where it cannot be, the
    revision is returned as it was given: a machine without network may queue, and the worker resolves it.

    Args:
        fresh: ask the hub first, for a job that is there to fetch what is new.

    Raises:
        UserError: a revision of what isn't on a hub; the hub has no such model or revision.
    """
    if not is_hub_name(name):
        if revision:
            raise UserError(
                f"revision = {revision!r}: {name!r} is not a hub's model, and has no revisions. Leave it empty."
            )
        return ""
    known = cached_commit(name, revision)
    if known and not (fresh and not is_commit(revision)):
        return known
    try:
        return ask(name, revision).commit
    except Unreachable:
        return known or revision


def adapter_revision(folder: Path) -> str:
    """The commit of the base that an adapter was trained on, as PEFT keeps it; "" where it isn't told."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("revision")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) and is_commit(found) else ""


def check_download(config: DownloadConfig) -> None:
    """What can be known before the job is queued.

    Raises:
        UserError: the name is no hub's; offline; a token that cannot be one.
    """
    if not is_hub_name(config.model):
        raise UserError(
            f"model = {config.model[:100]!r}: give the name of a hub's model, as llava-hf/llava-1.5-7b-hf. "
            "`demo` and folders need no download."
        )
    if offline():
        raise UserError(
            f"{OFFLINE} is set: nothing can be downloaded. Unset it and start Plumb again, or copy the model's "
            "folder to this machine and give its path as the base model."
        )
    token()


# What the hub says

_asking = threading.Lock()
_answers: dict[tuple[str, str, str], tuple[float, Listing | Unreachable]] = {}


def ask(name: str, revision: str = "", *, anew: bool = False) -> Listing:
    """A model's commit and files, as the hub has them; an answer is remembered for a minute.

    Raises:
        UserError: the hub has no such model or revision, or hides it.
        Unreachable: it gave no answer; also while offline.
    """
    if offline():
        raise Unreachable(
            f"{OFFLINE} is set: the hub is not asked about {name!r}. Unset it, or copy the model here."
        )
    where = endpoint() or ""
    key = (where, name, revision)
    with _asking:  # one question at a time: who comes second finds the answer
        for known in (key, (where, "", "")):  # the second: this hub was silent a moment ago
            at, answer = _answers.get(known, (-REMEMBER_SECONDS, None))
            if answer is not None and not anew and time.monotonic() - at < REMEMBER_SECONDS:
                if isinstance(answer, Unreachable):
                    raise Unreachable(str(answer))
                return answer
        try:
            with clear_errors(name, revision):
                found = _ask(name, revision)
        except Unreachable as error:
            _answers[(where, "", "")] = (time.monotonic(), error)
            raise
        _answers.pop((where, "", ""), None)
        _answers[key] = (time.monotonic(), found)
        return found


def _ask(name: str, revision: str) -> Listing:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token(), library_name="plumb")
    info = api.model_info(name, revision=revision or MAIN, files_metadata=True, timeout=ASK_SECONDS)
    if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):  # it becomes the name of a folder
        raise Unreachable(f"The hub's answer about {name!r} names no commit; is {ENDPOINT} the address of a hub?")
    files = []
    for entry in info.siblings or []:
        large: Any = entry.lfs
        size, blob = (large.size, large.sha256) if large else (entry.size, entry.blob_id)
        files.append(RemoteFile(entry.rfilename, size, blob or ""))
    return Listing(info.sha, tuple(files))


def branches(name: str) -> dict[str, str]:
    """{branch or tag: commit} of a model.

    Raises:
        PlumbError: the hub doesn't say.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status

    with clear_errors(name, ""):
        # HfApi.list_repo_refs would wait for ever.
        where = f"{endpoint() or constants.ENDPOINT}/api/models/{name}/refs"
        answer = get_session().get(where, headers=headers(), timeout=ASK_SECONDS)
        hf_raise_for_status(answer)
        found: dict[str, Any] = answer.json()
        return {ref["name"]: ref["targetCommit"] for kind in ("branches", "tags") for ref in found.get(kind, ())}


@contextmanager
def clear_errors(name: str, revision: str, what: str = "model") -> Iterator[None]:
    """Within it, errors of the hub and its library become ours, with a remedy and without the token."""
    try:
        yield
    except PlumbError:
        raise
    except Exception as error:
        found = explained(error, name, revision, what)
        if found is None:
            raise
        # No cause: it would be printed, and libraries' errors may quote requests.
        raise found from None


def explained(error: Exception, name: str, revision: str, what: str = "model") -> PlumbError | None:
    """An error of the hub's library as one of ours; None for what has nothing to do with a hub.

    Args:
        what: is asked for: a model, or a data set.
    """
    instead = (
        "copy the model's folder to this machine and give its path as the base model"
        if what == "model"
        else "upload the files instead"
    )
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    names = {kind.__name__ for found in chain for kind in type(found).__mro__}
    if "OfflineModeIsEnabled" in names:
        return Unreachable(
            f"{OFFLINE} is set: the hub is not asked about {name!r}. Unset it, or copy the model here."
        )
    response = next((found for each in chain if (found := getattr(each, "response", None)) is not None), None)
    status = getattr(response, "status_code", None)
    given = bool(os.environ.get(TOKEN, "").strip())
    if "GatedRepoError" in names:
        return UserError(
            f"The {what} {name!r} is gated ({status}): its owner wants each reader to agree to terms. Agree on "
            f"the {what}'s page of the hub, then set {TOKEN} in the environment to a token of the same account "
            "and start Plumb again."
        )
    if "RevisionNotFoundError" in names:
        return UserError(
            f"revision = {revision!r}: the hub's {what} {name!r} has no such commit, branch or tag. Check the "
            "spelling, or leave it empty for main."
        )
    if status in (401, 403) and given:
        return UserError(
            f"The hub refuses {name!r} to the token in {TOKEN} ({status}). Check the spelling, and that the token "
            f"is valid and may read this {what}."
        )
    if status in (401, 403, 404) or "RepositoryNotFoundError" in names:
        return UserError(
            f"The hub has no {what} {name!r}, or hides it ({status}). Check the spelling; for a private or gated "
            f"{what} set {TOKEN} in the environment and start Plumb again."
        )
    if status == 429:
        return Unreachable("The hub asks for patience (429): too many requests. Try again in a while.")
    if isinstance(status, int):
        return Unreachable(f"The hub answered {status} about {name!r}. Try again later.")
    if names & {"TransportError", "ConnectionError", "TimeoutError"}:
        return Unreachable(
            f"The hub cannot be reached about {name!r}. Check the network, and {ENDPOINT} if it is set; or "
            f"{instead}."
        )
    full = next((found for found in chain if isinstance(found, OSError) and found.errno), None)
    if full is not None and full.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"The hub's cache cannot be written ({full.strerror}: {full.filename}). Set HF_HOME to one that can."
        )
    if type(error).__module__.startswith("huggingface_hub") or "HTTPError" in names:
        secret = os.environ.get(TOKEN, "").strip()
        lines = str(error).strip().splitlines() or ["no reason was given."]
        told = scrub(lines[0], secret) if secret else lines[0]
        return PlumbError(f"The hub's library failed on {name!r}: {type(error).__name__}: {told}")
    return None
