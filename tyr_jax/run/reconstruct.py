"""The stage that trains what is left of a pruned model's FFNs, layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import Block, ModelConfig, Params, layer_block
from tyr_jax.pruning import stream
from tyr_jax.pruning.compress import joined
from tyr_jax.pruning.reconstruction import Plan, Streams, reconstruct_layer
from tyr_jax.run import resume
from tyr_jax.run.prepare import Dense, Run
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import batches
from tyr_jax.space import FFN

HELD_OUT = 16
"""One of so many calibration sequences, at most, is held out to see whether learning helps."""


def reconstructed(run: Run, dense: Dense, params: Params, config: ModelConfig) -> Params:
    """A pruned model of `config` what is left of whose FFNs has learnt from the dense one, with progress and
    weights as they are written; every layer is kept for an interrupted run."""
    model, pruning, store = dense.model, run.settings.pruning, run.store.part("reconstruct")
    plan = Plan(config, pruning.reconstruct, pruning.drift, run.settings.seed, run.scratch)
    blocks: list[Block] = []
    with run.progress.stage("reconstruct", config.depth, "layers") as stage:
        streams = resume.kept_streams(store, run.scratch) or begin(run, dense)
        for layer in range(streams.done):
            blocks.append(finished(run, dense, block_of(params, layer) | resume.kept_layer(store, layer)))
            stage.advance(note=resume.KEPT)
        for layer in range(streams.done, config.depth):
            small, block = block_of(params, layer), block_of(model.params, layer)
            passes = 0 if dense.whole[FFN, layer] else plan.passes
            learnt, streams = reconstruct_layer(
                devices.spread(small, config.hidden),
                devices.spread(block, config.hidden),
                ffn_metric(dense, layer),
                streams,
                plan._replace(passes=passes),
            )
            if learnt is not None:
                small = small | learnt.tensors
                run.events.write("reconstructed", layer=layer, before=learnt.before, after=learnt.after)
            blocks.append(finished(run, dense, small))
            resume.keep_layer(store, config.depth, learnt.tensors if learnt else {}, streams)
            stage.advance()
    return devices.spread(params | {"blocks": joined(blocks, config)}, config.hidden)


def begin(run: Run, dense: Dense) -> Streams:
    """Both streams before the first layer."""
    text = dense.splits.calibration
    # The last batch is held out.
    held = min(-(-len(text) // HELD_OUT), batches(text)[0].real)
    texts = [part for part in (dense.splits.openings, text[:-held], text[-held:]) if len(part)]
    (pruned, real), (copied, _) = (
        stream.embedded(dense.model.params, texts, scratch=run.scratch) for _ in range(2)
    )
    return Streams(0, pruned, copied, real)


def ffn_metric(dense: Dense, layer: int) -> jax.Array | None:
    """That of what a layer's FFN adds `[D, D]`, if it has one."""
    if dense.metrics is None:
        return None
    return devices.place(jnp.asarray(dense.metrics[layer][FFN]), 1)


def block_of(params: Params, layer: int) -> Block:
    """A layer's tensors, in memory."""
    return jax.tree.map(jnp.array, layer_block(params["blocks"], layer))


def finished(run: Run, dense: Dense, block: Block) -> Any:
    """A block with weights rounded to what they are written in, on disk where weights stay there."""
    written = rounded(block, dense.dtype)
    return run.scratch.keep(written) if run.scratch else written


def rounded(weights: Any, dtype: np.dtype) -> Any:
    """Weights, a pytree, rounded to the type that they will be written in."""
    return jax.tree.map(lambda array: array.astype(dtype).astype(array.dtype), weights)
