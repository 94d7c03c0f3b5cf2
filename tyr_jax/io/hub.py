"""Uploading what was made to the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tyr_jax.errors import UserError, first_line


@contextmanager
def _clear_errors(doing: str, mend: str) -> Iterator[None]:
    """Say in one sentence what the hub refused, and the mend."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{doing}: {first_line(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{doing}: log in first, with `hf auth login`") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{doing}: HF_HUB_OFFLINE is set") from error
    except Exception as error:
        # A refusal, or whatever the HTTP client in use raises when a connection breaks midway.
        reasons = [first_line(e).rstrip(".") for e in (error, error.__cause__) if isinstance(e, Exception)]
        raise UserError(f"{doing}: {': '.join(reasons)}; {mend}") from error


def check_upload(name: str, overwrite: bool) -> None:
    """Find out before any work is done whether its result can be uploaded as repository `name`.

    Raises:
        UserError: that is no repository's name, nobody is logged in, the hub cannot be reached, or there is
            such a repository (unless `overwrite`).
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _clear_errors(f"cannot upload as '{name}'", "log in with `hf auth login`, or drop --push-to-hub"):
        exists = api.repo_exists(name)
        api.whoami()
    if exists and not overwrite:
        raise UserError(
            f"there is a repository '{name}' on the hub; choose another name with --push-to-hub, or replace "
            "what it holds with --overwrite"
        )


def upload(directory: Path, name: str, mend: str = "") -> str:
    """Make repository `name` hold what `directory` holds; returns its address.

    Raises:
        UserError: the hub did not take it, and how to `mend` that: by default, the directory is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    mend = mend or f"{directory} is complete, so upload it with `hf upload {name} {directory}`"
    with _clear_errors(f"cannot upload {directory} as '{name}'", mend):
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, delete_patterns="*")
    return str(address)
