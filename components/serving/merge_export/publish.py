"""Takes the exported folder to the Hugging Face Hub."""

import glob
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from llm_finetune.components.serving.merge_export.layout import leftovers
from llm_finetune.components.shared.base_model import first_line, hub_token
from llm_finetune.components.shared.errors import UserError


def check_hub() -> None:
    """Refuses a missing or unknown token before the work begins."""
    if not hub_token():
        raise UserError("push_to_hub needs a token with write access in HF_TOKEN (set it from a secret)")
    try:
        HfApi(token=hub_token()).whoami()
    except HfHubHTTPError as error:
        raise UserError(f"{constants.ENDPOINT} does not accept the token in HF_TOKEN: {first_line(error)}") from error
    except HTTPError as error:
        raise UserError(f"{constants.ENDPOINT} is out of reach: {first_line(error)}") from error


def push(folder: Path, repository: str, private: bool, message: str) -> str:
    """Uploads a folder to a model repository, which is made when absent; weights of an earlier model are removed.

    Args:
        folder: The folder.
        repository: Hub id.
        private: Whether a new repository is private.
        message: Commit message.

    Returns:
        URL of the commit.

    Raises:
        UserError: If the Hub refuses.
    """
    api = HfApi(token=hub_token())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=[glob.escape(name) for name in leftovers(api.list_repo_files(repository), files)] or None,
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
