"""`python -m jobs push-dataset`: a frozen data set with its card into a data set repository of a hub.

Token and errors are as in jobs/push.py: HF_TOKEN from the environment alone, never shown.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from sqlite_utils import Database

from jobs.command_line import Data, opened
from jobs.push import CARD, ENDPOINT, check_repository, clear_errors, need_token
from storage.database import session
from storage.datasets import get_dataset
from storage.errors import UserError
from storage.exports.manifest import MANIFEST
from storage.exports.writing import FORMATS, export_dataset
from storage.folder import DataFolder
from storage.records import Dataset

Say = Callable[[str], None]


def push_dataset(
    db: Database, folder: DataFolder, name: str, repository: str, form: str, private: bool, say: Say
) -> str:
    """Export a data set and upload it as one commit; returns the commit.

    Raises:
        UserError: no token; a repository's name that no hub takes; the hub refuses; the repository is public,
            and a private one was asked for; the format is unknown.
        NotFound: there is no data set of this name.
        PlumbError: the hub cannot be reached.
    """
    token = need_token()
    check_repository(repository)
    dataset = get_dataset(db, name)
    with tempfile.TemporaryDirectory(dir=folder.runtime) as place:
        target = Path(place) / "files"
        export_dataset(db, folder, name, form, target, lambda done, total: say(f"{done} of {total} rows written"))
        _forget_people(target / MANIFEST)
        (target / CARD).write_text(card_of(dataset, form), encoding="utf-8")
        with clear_errors(repository, token):
            return _upload(target, repository, private, token)


def _upload(target: Path, repository: str, private: bool, token: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    endpoint = os.environ.get(ENDPOINT, "").rstrip("/") or None
    api = HfApi(endpoint=endpoint, token=token, library_name="plumb")
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    if private and api.repo_info(repository, repo_type="dataset").private is False:
        raise UserError(
            f"The repository {repository!r} is there already and is public, and a private one was asked for. Make "
            "it private on the hub, choose another name, or push with --public."
        )
    files = sorted(file for file in target.rglob("*") if file.is_file())
    additions = [
        CommitOperationAdd(path_in_repo=file.relative_to(target).as_posix(), path_or_fileobj=str(file))
        for file in files
    ]
    done = api.create_commit(repository, additions, commit_message="Upload from Plumb", repo_type="dataset")
    return str(done.oid)


def card_of(dataset: Dataset, form: str) -> str:
    """The card: what it is, how it came about, how long the answers are. Names of people stay out of it."""
    counts, rule = dataset.counts, dataset.rule
    front: dict[str, Any] = {
        "pretty_name": dataset.name,
        "tags": ["preference", "dpo", "vision-language", "plumb"],
        "task_categories": ["image-text-to-text"],
    }
    raters = "\n".join(f"- {_rater(one)}" for one in rule.get("raters", ())) or "- not kept"
    kept = {name: value for name, value in rule.items() if name not in ("raters", "pair_rules")}
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {dataset.name}\n\n"
        "Preference pairs for vision-language models, frozen with Plumb.\n\n"
        f"- Pairs: {counts['train']:,} to train on, {counts['heldout']:,} held out (no image is in both parts).\n"
        f"- Mean length: chosen {counts['chosen_characters']:g}, rejected {counts['rejected_characters']:g} "
        "characters.\n"
        f"- Content hash: `{dataset.hash}`.\n- Format: `{form}`; manifest.json has the sha256 of each file.\n"
        f"- Rule: `{json.dumps(kept, ensure_ascii=False)}`.\n\n## Who judged\n\n{raters}\n\n## Licence\n\n"
        "Unknown: the images and questions keep the licences of the data that they come from. Say here which.\n"
    )


def _forget_people(manifest: Path) -> None:
    """Take the names of people out of the rule: what was judged is published, not who judged."""
    told = json.loads(manifest.read_text(encoding="utf-8"))
    for one in told["rule"].get("raters", ()):
        if one.get("kind") == "person":
            one["name"] = "a person"
    manifest.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _rater(one: Mapping[str, Any]) -> str:
    who = "a person" if one.get("kind") == "person" else " ".join(filter(None, (one["name"], one.get("version"))))
    number = one.get("judgements", one.get("pairs", 0))
    return f"{who}: {number:,} {'judgements' if 'judgements' in one else 'pairs'}"


def add_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command("push-dataset")(command)


def command(
    name: Annotated[str, typer.Argument(help="of a frozen data set")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "trl",
    private: Annotated[bool, typer.Option("--private/--public")] = True,
    data: Data = None,
) -> None:
    """Upload a frozen data set with a card to a hub; HF_TOKEN in the environment is the token."""
    settings = opened(data)
    with session(settings.folder) as db:
        commit = push_dataset(db, settings.folder, name, repository, form, private, typer.echo)
    typer.echo(f"{repository} holds {name!r} as {form}; commit {commit}.")
