"""The `push` job: an adapter with its card, or merged weights, into a repository of a hub. Torch-free.

The token comes from HF_TOKEN in the environment alone and goes into requests' headers alone: it is taken out of
every text that leaves this module. HF_ENDPOINT names another hub than the public one.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jobs.configs import PushConfig
from jobs.merged import find_merged
from jobs.models import DEMO
from jobs.places import models_folder
from jobs.pushed import is_local, local_paths, settings_for_hub, without_paths, without_people
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError, UserError

TOKEN = "HF_TOKEN"
ENDPOINT = "HF_ENDPOINT"
HIDDEN = "•••"
CARD = "README.md"
#: What a hub takes as a part of a repository's name.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
#: What is uploaded; a pickle that somebody put beside the weights is not.
_SUFFIXES = frozenset({".safetensors", ".json", ".md", ".txt", ".jinja", ".model"})


def need_token() -> str:
    """The token.

    Raises:
        UserError: none is set, or one that cannot be.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(
            f"No token for the hub is set. Set {TOKEN} in the environment and start Plumb again; it is read from "
            "there and stored nowhere."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            f"{TOKEN} holds a character that no token has (a line break or a blank, say). Set it anew, in one "
            "line, and start Plumb again."
        )
    return token


def check_repository(name: str) -> str:
    """The repository's name as it is.

    Raises:
        UserError: no hub takes it.
    """
    owner, _, own = name.partition("/")
    fits = all(_PART.fullmatch(part) for part in (owner, own))
    if not fits or "--" in name or ".." in name or name.endswith(".git"):
        raise UserError(
            f"repository = {name[:100]!r}: give owner/name, each of letters, digits, hyphens, dots and "
            "underscores, beginning and ending with a letter or a digit, without --, .. or .git at the end."
        )
    return name


def check_push(config: PushConfig, models_dir: Path) -> None:
    """What can be known before the job is queued.

    Raises:
        UserError: no token; a repository's name that no hub takes.
        NotFound: the merged weights are not there.
    """
    need_token()
    check_repository(config.repository)
    if config.merged:
        find_merged(models_dir, config.merged)


def push(run: RunFolder, job: JobFile, config: PushConfig, reporter: Reporter) -> None:
    """Make the repository where it is not there, upload the files one by one, commit them as one.

    A hub keeps uploaded files for a while, so that a second attempt sends only what is missing.

    Raises:
        Stopped: asked to stop between two files; nothing is committed.
        UserError: what `check_push` finds; the hub refuses; the repository is public, and a private one was asked.
        PlumbError: the hub cannot be reached, or something unforeseen.
    """
    token = need_token()
    check_repository(config.repository)
    folder, base = source_of(run, job, config)
    with clear_errors(config.repository, token):
        _upload(folder, base, config, token, reporter)


def _upload(folder: Path, base: str, config: PushConfig, token: str, reporter: Reporter) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    endpoint = os.environ.get(ENDPOINT, "").rstrip("/") or None
    api = HfApi(endpoint=endpoint, token=token, library_name="plumb")
    files = uploaded_files(folder)
    reporter.phase("uploading")
    reporter.progress(0, len(files), "files")
    if warning := base_warning(base):
        reporter.note(warning)
    reporter.check_stop()
    api.create_repo(config.repository, private=config.private, exist_ok=True)
    if config.private and api.repo_info(config.repository).private is False:
        raise UserError(
            f"The repository {config.repository!r} is there already and is public, and a private one was asked "
            "for. Make it private on the hub, choose another name, or push without “Private”."
        )
    additions, paths = [], local_paths(folder)
    for number, file in enumerate(files, start=1):
        reporter.check_stop()
        addition = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content_for_hub(file, paths))
        api.preupload_lfs_files(config.repository, [addition], free_memory=False)
        additions.append(addition)
        reporter.progress(number, len(files), "files")
    reporter.check_stop()
    reporter.phase("committing")
    done = api.create_commit(config.repository, additions, commit_message="Upload from Plumb")
    reporter.note(f"{config.repository} holds {len(files)} files; commit {done.oid}.")


def source_of(run: RunFolder, job: JobFile, config: PushConfig) -> tuple[Path, str]:
    """(the folder to upload, what it needs besides: the base of an adapter, "" for merged weights).

    Raises:
        UserError: the adapter was not frozen into the run folder.
        NotFound: the merged weights are not there.
    """
    if config.merged:
        return find_merged(models_folder(run, job), config.merged)[0], ""
    try:
        listed = json.loads((run.path / "data" / "adapters.json").read_text(encoding="utf-8"))
        folder = run.start_adapter(listed[str(config.adapter)]["sha256"])
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The adapter {config.adapter} is not whole in the run folder ({type(error).__name__}); "
            "submit the job again."
        ) from error
    return folder, str(settings.get("base_model_name_or_path") or "")


def uploaded_files(folder: Path) -> list[Path]:
    """Weights, settings, tokenizer and card: the card comes first, its mistakes show before gigabytes are sent.

    Raises:
        UserError: there are no weights as safetensors.
    """
    files = [
        file
        for file in sorted(folder.iterdir(), key=lambda file: (file.name != CARD, file.name))
        if file.is_file() and file.suffix in _SUFFIXES and not file.name.startswith(".")
    ]
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"There are no weights to upload in {folder.name}: no .safetensors file is in it.")
    return files


def content_for_hub(file: Path, paths: list[str]) -> str | bytes:
    """What goes to the hub of a file: its path, or its text without local paths and people's names."""
    if file.name == CARD:
        return without_people(without_paths(card_for_hub(file).decode(), paths)).encode()
    return settings_for_hub(file, paths) or str(file)


def card_for_hub(file: Path) -> bytes:
    """The card, without a `base_model` that a hub would refuse because no hub has it."""
    text = file.read_text(encoding="utf-8", errors="replace")
    start, mark, body = text.removeprefix("---\n").partition("\n---\n")
    if not (text.startswith("---\n") and mark):
        return text.encode()
    try:
        front = yaml.safe_load(start)
    except yaml.YAMLError:
        return text.encode()
    if not isinstance(front, dict) or not base_warning(str(front.get("base_model", ""))):
        return text.encode()
    del front["base_model"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{body}".encode()


def base_warning(base: str) -> str:
    """What to tell where others cannot load an adapter's base; "" where they can, and for merged weights."""
    if base == DEMO:
        return (
            "Others cannot load this adapter: its base is the demo VLM, which Plumb assembles and no hub has. "
            "Merge it and push the full weights."
        )
    if is_local(base):
        return (
            f"Others cannot load this adapter: its base, {Path(base).name}, is a folder of this machine. Merge "
            "the adapter and push the full weights, or train on a base that a hub has."
        )
    return ""


def scrub(text: str, token: str) -> str:
    """The text without the token: errors of libraries may quote a request."""
    for form in {token, repr(token)[1:-1], json.dumps(token)[1:-1]}:
        text = text.replace(form, HIDDEN)
    return text


@contextmanager
def clear_errors(repository: str, token: str) -> Iterator[None]:
    """Errors of the hub and its library as texts with a remedy; nothing raised or printed has the token."""
    try:
        yield
    except (Stopped, PlumbError):
        raise
    except Exception as error:
        # What is raised here has no cause: the worker would print the cause, too.
        print(scrub(traceback.format_exc(), token), file=sys.stderr)
        raise explained(error, repository, token) from None


def explained(error: Exception, repository: str, token: str) -> PlumbError:
    """An error of the hub's library as one of ours."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    names = {kind.__name__ for found in chain for kind in type(found).__mro__}
    status = next((code for found in chain if (code := _status(found)) is not None), None)
    owner = repository.partition("/")[0]
    match status:
        case 401:
            return UserError(f"The hub does not know the token (401). Set {TOKEN} to one that is valid.")
        case 403:
            return UserError(
                f"The token may not write to {repository!r} (403). Give it the right to write, or choose an owner "
                f"that is yours in place of {owner!r}."
            )
        case 404:
            return UserError(
                f"The hub has no {repository!r}, or hides it from this token (404). Check the owner {owner!r}."
            )
        case 413 | 507:
            return UserError(f"The hub has no room for these files ({status}). Free some space in {owner!r}.")
        case 429:
            return PlumbError("The hub asks for patience (429): too many requests. Push again in a while.")
        case int():
            return PlumbError(
                f"The hub answered {status}: {scrub(_first_line(error), token)} Push again later; what it has is "
                "not sent again."
            )
    if "OfflineModeIsEnabled" in names:
        return UserError("HF_HUB_OFFLINE is set: nothing can be pushed. Unset it and start Plumb again.")
    if names & {"NetworkError", "TimeoutException", "ConnectionError", "TimeoutError"}:
        return PlumbError(
            "The hub cannot be reached. Check the network, and HF_ENDPOINT if it is set; then push again: what "
            "the hub has is not sent again."
        )
    return PlumbError(f"The upload failed: {type(error).__name__}: {scrub(_first_line(error), token)}")


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    return code if isinstance(code, int) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no reason was given."
