"""Takes the exported folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError

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
    """Uploads a folder as one commit to a model repository, which is made when absent.

    Args:
        folder: The folder.
        repository: Hub id.
        private: Whether a new repository is private.
        message: Commit message.

    Returns:
        URL of the commit.
    """
    api = HfApi(token=hub_token())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "the token in HF_TOKEN may not write there" if status in (401, 403, 404) else "try again later"
        raise UserError(f"pushing to {repository} was answered with {status}: {hint} ({first_line(error)})") from error
    except HTTPError as error:
        raise UserError(f"pushing to {repository} broke off: {first_line(error)}. Run again to resume") from error
    return str(commit.commit_url)
