"""Rendering of chat templates, by the process that `tyr_jax.confinement` starts."""

from typing import Any

from tyr_jax.errors import UserError, first_line

FAILS = "the model's chat template fails"
"""The beginning of messages."""


def render(template: str, conversation: list[dict[str, str]], options: dict[str, Any], most: int) -> str:
    """A conversation as a template writes it, with `options` as its variables.

    Raises:
        UserError: it fails, or writes more than `most` characters.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(conversations=[conversation], chat_template=template, **options)
    except MemoryError:
        raise
    except Exception as error:  # a template is a stranger's program and raises what it likes
        raise UserError(f"{FAILS}: {first_line(error)[:300]}") from None
    if len(text) > most:
        raise UserError(f"{FAILS}: it writes more than {most} characters")
    return str(text)
