"""Continuations of one prompt by the models of a job, for people to compare."""

import dataclasses

import jax

from tyr_jax.evaluation import continuation
from tyr_jax.evaluation.settings import GenerationSettings
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.runtime import devices
from tyr_jax.workspace.progress import Progress

SETTINGS = GenerationSettings(max_tokens=24)
"""The most likely tokens, about one sentence."""


def check_prompt(model: LoadedModel, prompt: str) -> None:
    """Refuse a prompt that the model cannot continue, before anything is computed.

    Raises:
        UserError: it is not Unicode text, has no token, or leaves no room for a continuation.
    """
    if prompt:
        continuation.validate([prompt], SETTINGS)
        continuation.encode(model, [prompt], SETTINGS)


def sample_of(name: str, model: LoadedModel, prompt: str, progress: Progress) -> str | None:
    """A model's continuation of `prompt`, made on the first device alone; None if the prompt is empty."""
    if not prompt:
        return None
    with progress.stage(f"sample of {name}", 1, "sentences") as stage, devices.in_use(1):
        # Sharded weights would have to be gathered again for every token.
        whole = dataclasses.replace(model, params=jax.device_put(model.params, jax.devices()[0]))
        (text,) = continuation.continued(whole, [prompt], SETTINGS)
        stage.advance()
    return text
