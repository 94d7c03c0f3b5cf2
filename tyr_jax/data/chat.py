"""Conversations as a model's own chat template writes them.

A chat template is a stranger's program. jinja's sandbox keeps it away from files and from the network, but
does not stop it from running for ever, or from doubling a text until memory is used up. Nor can the
allocation of a single call be stopped from within. So `tyr_jax.confinement` runs templates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tyr_jax import confinement
from tyr_jax.data.renderer import FAILS
from tyr_jax.errors import UserError

MOST = 2**20
"""Characters that a template may write, beyond eight times those of the conversation."""


class Templated(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Special tokens by their names in templates."""

    def get_chat_template(self) -> str:
        """The template. Raises `ValueError` if there is none, or several without a default."""


def template_of(tokenizer: Templated) -> str:
    """The chat template of a tokenizer.

    Raises:
        UserError: it has none, or several without a default.
    """
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            "the model has no chat template, or several without a default; give plain text"
        ) from None


def written(
    tokenizer: Templated, conversation: Sequence[Mapping[str, str]], template: str = "", **options: Any
) -> str:
    """Render a conversation with a tokenizer's chat template, or another `template`, and its `options`.

    Raises:
        UserError: there is no template, it fails, takes too long, needs too much memory or writes too much.
    """
    most = MOST + 8 * sum(len(turn["content"]) for turn in conversation)
    arguments = (template or template_of(tokenizer), [*map(dict, conversation)])
    variables = {**tokenizer.special_tokens_map, **options}
    text: str = confinement.call(FAILS, "tyr_jax.data.renderer:render", *arguments, variables, most)
    return text
