"""Tokenizers of Hugging Face directories, and checks of any tokenizer. No code in a directory is run."""

import contextlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tokenizers import (
    Tokenizer,
)
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from tyr_jax.data.encoding import encode, refusing
from tyr_jax.errors import Notice, UserError
from tyr_jax.files import inside, read_json
from tyr_jax.io.config_values import of_file, read_values, shown

TOKENIZER_CONFIG = "tokenizer_config.json"


MOST_GROWTH = 64
"""Maximum number of characters that a decoder may make of one. Several steps in a row could otherwise double
a text again and again."""

PROBE = "It's 12 naïve cats:\n\n  日本 <s>"
"""A text that every tokenizer can read."""


def tokenizer_from_directory(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face directory, including the chat template. No code in it is run.

    Raises:
        UserError: there is no tokenizer, it needs more than `tokenizers`, or it does not work; names the
            directory.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{directory} has no tokenizer: tokenizer.json is missing")
    settings = _settings(directory)
    try:
        with _culprit(directory), refusing(f"cannot load the tokenizer of {directory}"), _unheard():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, config=_plain_config(directory), local_files_only=True, trust_remote_code=False
            )
    except UserError as error:
        if not settings.get("auto_map"):
            raise
        raise UserError(
            f"{directory / TOKENIZER_CONFIG} names code of its own ('auto_map'), which is not run, and the "
            "tokenizer cannot be loaded without: save it as a fast one (tokenizer.json), and take the key out"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer of {directory} has no fast version (tokenizer.json), which is needed")
    check_tokenizer(tokenizer, str(directory))
    return tokenizer


@contextlib.contextmanager
def _culprit(directory: Path) -> Iterator[None]:
    """A context that, if loading fails, loads `tokenizer.json` alone for a more precise error.

    Raises:
        UserError: the one for that file if it is at fault, else the body's.
    """
    try:
        yield
    except UserError:
        path = directory / "tokenizer.json"
        if path.exists():
            with refusing(f"cannot load the tokenizer {path}"), _unheard():
                Tokenizer.from_file(str(path))
        raise


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A context that holds back what its body writes on stderr, and drops it if the body fails.

    When the Rust code of `tokenizers` fails, it writes several lines there in addition to its exception.
    """
    try:
        stderr = os.dup(2)
        box = _box()
    except OSError:
        yield
        return
    with box:
        os.dup2(box.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        box.seek(0)
        os.write(2, box.read())


def _box() -> IO[bytes]:
    """An anonymous temporary file; in memory where possible, so that no directory has to be writable."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "r+b")
    return tempfile.TemporaryFile()


def _settings(directory: Path) -> dict[str, Any]:
    """The contents of `tokenizer_config.json`, or an empty dictionary if there is none.

    The small JSON files that transformers reads as well are checked too.

    Raises:
        UserError: a file is not JSON, or has a value of the wrong type; names the file and the key.
    """
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (directory / name).exists():
            read_values(directory / name)
    path = directory / TOKENIZER_CONFIG
    values = read_values(path) if path.exists() else {}
    _check_settings(values.get("chat_template"), values.get("model_max_length", 0), str(path))
    names = values.get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: 'fast_tokenizer_files' is {shown(names)}, but must be names of files")
    for name in names:
        inside(directory, name, str(path))
    return values


def _check_settings(template: Any, limit: Any, where: str) -> None:
    """Check the types of a chat template and of the longest text's length.

    A chat template is text, or several texts by name: an object, or a list of objects with `name` and
    `template`. The length `limit` is a number or None.

    Raises:
        UserError: one of them is something else; names it, and `where` it comes from.
    """
    try:
        named = isinstance(template, list)
        texts = {each["name"]: each["template"] for each in template} if named else template
        parts = [*texts, *texts.values()] if isinstance(texts, dict) else ["" if texts is None else texts]
        right = all(isinstance(part, str) for part in parts)
    except (TypeError, KeyError):
        right = False
    if not right:
        raise UserError(f"{where}: 'chat_template' is {shown(template)}, but must be text, or texts by name")
    if isinstance(limit, bool) or not isinstance(limit, int | float | None):
        raise UserError(f"{where}: 'model_max_length' is {shown(limit)}, but must be a number")


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, where: str) -> None:
    """Try what is done with a tokenizer later, so that it does not fail after hours of work. What makes its
    tokens differ from run to run is switched off, with a warning.

    Raises:
        UserError: it does not work; names `where` it comes from.
    """
    _check_settings(tokenizer.chat_template, tokenizer.model_max_length, f"the tokenizer of {where}")
    model = tokenizer.backend_tokenizer.model
    if getattr(model, "dropout", None):
        model.dropout = None
        message = f"the tokenizer of {where} drops merges at random (BPE dropout), which is switched off here"
        warnings.warn(message, Notice, stacklevel=2)
    decoder = tokenizer.backend_tokenizer.decoder
    # The steps of a decoder are visible only in its serialised form.
    if decoder is not None and growth(json.loads(decoder.__getstate__())) > MOST_GROWTH:
        raise UserError(
            f"the tokenizer of {where} has a decoder that turns one character into more than {MOST_GROWTH}"
        )
    with of_file(Path(where)), refusing(f"the tokenizer of {where} does not work"), _unheard():
        ids = encode(tokenizer, PROBE, special=True).tolist()
        tokenizer.decode(ids, skip_special_tokens=True)
        named = [
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
            tokenizer.pad_token_id,
        ]
    for index in (*named, *tokenizer.all_special_ids):
        if index is not None and not isinstance(index, int):
            raise UserError(f"the tokenizer of {where} has a special token with id {shown(index)}")


def growth(step: dict[str, Any]) -> int:
    """Maximum number of characters that a decoder, as `tokenizers` serialises it, makes of one."""
    whole = math.prod(map(growth, step.get("decoders", [])))
    if step["type"] == "Replace":
        replaced = step["pattern"].get("String") or "x"
        whole *= max(1, -(-len(step["content"]) // len(replaced)))
    return whole


def _plain_config(directory: Path) -> PreTrainedConfig | None:
    """A configuration to give transformers instead of a `config.json` whose layers differ, which it refuses.

    transformers needs it only to choose the tokenizer's class, but reads all of it. None if the layers do not
    differ, or there is no `config.json`.
    """
    path = directory / "config.json"
    values = read_json(path) if path.exists() else {}
    if not values.get("per_layer_config"):
        return None
    values = {key: value for key, value in values.items() if key not in ("per_layer_config", "auto_map")}
    with refusing(f"cannot read {path}"):
        return AutoConfig.for_model(**values)
