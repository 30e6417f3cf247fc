"""Takes the exported folder to the Hugging Face Hub."""

import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from llm_finetune.components.serving.merge_export import ownership
from llm_finetune.components.serving.merge_export.export import described
from llm_finetune.components.serving.merge_export.ownership import MANIFEST
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import first_line, hub_token

UNTOUCHED = (".gitattributes", "README.md")
"""Files that a repository on the Hub begins with."""


def check_hub(repository: str, overwrite: bool = False) -> None:
    """Refuses a missing or unknown token, and a repository with files of others, before the work begins.

    Args:
        repository: Hub id.
        overwrite: Whether files of others are no reason to refuse.

    Raises:
        UserError: If the Hub refuses, or the repository isn't ours.
    """
    if not hub_token():
        raise UserError("push_to_hub needs a token with write access in HF_TOKEN (set it from a secret)")
    api = HfApi(token=hub_token())
    try:
        api.whoami()
    except HfHubHTTPError as error:
        raise UserError(f"{constants.ENDPOINT} does not accept the token in HF_TOKEN: {first_line(error)}") from error
    except HTTPError as error:
        raise UserError(f"{constants.ENDPOINT} is out of reach: {first_line(error)}") from error
    try:
        _ours(api, repository, _names(api, repository), overwrite)
    except RepositoryNotFoundError:
        return
    except (HfHubHTTPError, HTTPError) as error:
        raise UserError(f"hub_repo = {repository!r} can't be read: {first_line(error)}") from error


def push(folder: Path, repository: str, private: bool, message: str, overwrite: bool = False) -> str:
    """Uploads a folder to a model repository, which is made when absent.

    One commit brings the new files and their manifest, and removes those of an earlier push that the new one lacks.

    Args:
        folder: The folder.
        repository: Hub id.
        private: Whether a new repository is private.
        message: Commit message.
        overwrite: Whether files of others are no reason to refuse.

    Returns:
        URL of the commit.

    Raises:
        UserError: If the Hub refuses, or the repository isn't ours.
    """
    api = HfApi(token=hub_token())
    files = described(folder)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        present = _names(api, repository)
        ours = _ours(api, repository, present, overwrite)
        ownership.beside(present, files, ours)
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, folder / name) for name in files),
                CommitOperationAdd(MANIFEST, ownership.manifest(files)),
                *(CommitOperationDelete(name) for name in sorted(ours & set(present) - set(files))),
            ],
            commit_message=message,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "the token in HF_TOKEN may not write there" if status in (401, 403, 404) else "try again later"
        raise UserError(f"pushing to {repository} was answered with {status}: {hint} ({first_line(error)})") from error
    except ValueError as error:  # the Hub, or its client, finds the model card's front matter wrong
        raise UserError(f"{repository} does not take the model: {' '.join(str(error).split())}") from error
    except HTTPError as error:
        raise UserError(f"pushing to {repository} broke off: {first_line(error)}. Run again to resume") from error
    return str(commit.commit_url)


def _names(api: HfApi, repository: str) -> list[str]:
    return [name for name in api.list_repo_files(repository) if name not in UNTOUCHED]


def _ours(api: HfApi, repository: str, present: list[str], overwrite: bool) -> set[str]:
    """Returns the names of an earlier push, and refuses a repository of others."""
    ours = None
    if MANIFEST in present:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                content = Path(api.hf_hub_download(repository, MANIFEST, local_dir=scratch)).read_bytes()
            except EntryNotFoundError as error:
                raise UserError(
                    f"hub_repo = {repository!r}: its {MANIFEST} can't be read: {first_line(error)}. Run again"
                ) from error
        ours = ownership.named(content)
    ownership.refuse_others(f"hub_repo = {repository!r}", present, ours, overwrite)
    return ours or set()
