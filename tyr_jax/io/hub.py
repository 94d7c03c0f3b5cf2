"""Uploading results to the Hugging Face hub."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from tyr_jax.errors import UserError, first_line


@contextmanager
def _clear_errors(doing: str, mend: str) -> Iterator[None]:
    """A context that turns any error of the hub into one sentence.

    Args:
        doing: what could not be done, the start of the sentence.
        mend: how to fix a refusal or a broken connection, its end.

    Raises:
        UserError: the body failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{doing}: {first_line(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{doing}: log in first, with `hf auth login`") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{doing}: HF_HUB_OFFLINE is set; unset it") from error
    except Exception as error:
        # A refusal, or whatever the HTTP client raises when a connection breaks.
        reasons = [first_line(e).rstrip(".") for e in (error, error.__cause__) if isinstance(e, Exception)]
        raise UserError(f"{doing}: {': '.join(reasons)}; {mend}") from error


def check_upload(name: str, overwrite: bool) -> None:
    """Check, before any work is done, that its result can be uploaded as repository `name`.

    Raises:
        UserError: the name is invalid, the user is not logged in, the hub cannot be reached, or the
            repository exists already (unless `overwrite`).
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


def upload(
    directory: Path, name: str, mend: str = "", changed: Mapping[str, str | None] = MappingProxyType({})
) -> str:
    """Make the contents of repository `name` those of `directory`, and return the repository's address.

    Args:
        directory: what to upload.
        name: the repository.
        mend: how to fix a failed upload, for the message; by default, to upload the directory, which is
            complete, by hand.
        changed: files of the directory, by name, that are uploaded with these contents instead, or, if
            that is None, not at all.

    Raises:
        UserError: the upload failed.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    told = " (its records name folders of this machine)" if changed else ""
    mend = mend or f"{directory} is complete, so upload it with `hf upload {name} {directory}`{told}"
    with _clear_errors(f"cannot upload {directory} as '{name}'", mend), TemporaryDirectory() as scratch:
        shown = Path(scratch, "model")
        shutil.copytree(directory.absolute(), shown, copy_function=os.symlink)
        for file, content in changed.items():
            (shown / file).unlink(missing_ok=True)
            if content is not None:
                (shown / file).write_text(content, encoding="utf-8")
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=shown, delete_patterns="*")
    return str(address)
