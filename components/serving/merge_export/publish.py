"""Pushes the exported folder to the Hugging Face Hub."""

import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from llm_finetune.components.serving.merge_export import ownership
from llm_finetune.components.serving.merge_export.export import file_checksums
from llm_finetune.components.serving.merge_export.ownership import MANIFEST
from llm_finetune.components.shared.errors import UserError, first_line
from llm_finetune.components.shared.modeling.base_model import hub_token

HUB_DEFAULT_FILES = (".gitattributes", "README.md")
"""Files of a new repository on the Hub."""


def check_hub(repository: str, overwrite: bool = False) -> None:
    """Validates token and repository before the merge.

    Args:
        repository: Hub id.
        overwrite: Whether the repository may have other files.

    Raises:
        UserError: If the Hub rejects the token, or the repository has other files.
    """
    if not hub_token():
        raise UserError("push_to_hub needs a token with write access in HF_TOKEN (set it from a secret)")
    api = HfApi(token=hub_token())
    try:
        api.whoami()
    except HfHubHTTPError as error:
        raise UserError(f"{constants.ENDPOINT} does not accept the token in HF_TOKEN: {first_line(error)}") from error
    except HTTPError as error:
        raise UserError(f"{constants.ENDPOINT} is unreachable: {first_line(error)}") from error
    try:
        _own_files(api, repository, _names(api, repository), overwrite)
    except RepositoryNotFoundError:
        return
    except (HfHubHTTPError, HTTPError) as error:
        raise UserError(f"hub_repo = {repository!r} can't be read: {first_line(error)}") from error


def push(folder: Path, repository: str, private: bool, message: str, overwrite: bool = False) -> str:
    """Pushes a folder to a model repository, which is created if it does not exist.

    One commit adds the files with their manifest and deletes files of an earlier push which the new one lacks.

    Args:
        folder: The folder.
        repository: Hub id.
        private: Whether a new repository is private.
        message: Commit message.
        overwrite: Whether the repository may have other files.

    Returns:
        URL of the commit.

    Raises:
        UserError: If the Hub rejects the push, or the repository has other files.
    """
    api = HfApi(token=hub_token())
    files = file_checksums(folder)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        present = _names(api, repository)
        own = _own_files(api, repository, present, overwrite)
        ownership.warn_of_foreign_weights(present, files, own)
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, folder / name) for name in files),
                CommitOperationAdd(MANIFEST, ownership.manifest(files)),
                *(CommitOperationDelete(name) for name in sorted(own & set(present) - set(files))),
            ],
            commit_message=message,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "the token in HF_TOKEN has no write access" if status in (401, 403, 404) else "try again later"
        raise UserError(
            f"the push to {repository} failed with status {status}: {hint} ({first_line(error)})"
        ) from error
    except ValueError as error:  # invalid front matter of the model card
        raise UserError(f"the Hub rejects the model card for {repository}: {' '.join(str(error).split())}") from error
    except HTTPError as error:
        raise UserError(
            f"the push to {repository} was interrupted: {first_line(error)}. Run again to resume"
        ) from error
    return str(commit.commit_url)


def _names(api: HfApi, repository: str) -> list[str]:
    return [name for name in api.list_repo_files(repository) if name not in HUB_DEFAULT_FILES]


def _own_files(api: HfApi, repository: str, present: list[str], overwrite: bool) -> set[str]:
    """Returns the files of an earlier push, and refuses a repository with other files."""
    own = None
    if MANIFEST in present:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                content = Path(api.hf_hub_download(repository, MANIFEST, local_dir=scratch)).read_bytes()
            except EntryNotFoundError as error:
                raise UserError(
                    f"hub_repo = {repository!r}: its {MANIFEST} can't be read: {first_line(error)}. Run again"
                ) from error
        own = ownership.files_in_manifest(content)
    ownership.refuse_foreign_files(f"hub_repo = {repository!r}", present, own, overwrite)
    return own or set()
