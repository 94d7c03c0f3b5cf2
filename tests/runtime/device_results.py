"""Results of the stages on 1, 2, … devices of one process. test_devices runs this with many CPU devices."""

import dataclasses
import pickle
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import stage_programs
from collectives import largest_collective
from reference import random_supernet
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.evaluation import quality, writing
from tyr_jax.evaluation.likelihood import Request, log_likelihoods
from tyr_jax.model.rope import Positions
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params, taken
from tyr_jax.pruning import fisher, fold, reconstruction, stream
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices, offload
from tyr_jax.scoring import chunking, nested, scorer, slopes
from tyr_jax.scoring.objective import HiddenKL
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.settings import PRESETS

LENGTH = 16
LAYERS = 24
"""Enough layers that a tensor of all layers is larger than that of one layer at all levels."""


CONFIGS = {
    "plain": make_tiny_config(qkv_bias=True),
    # Layers that treat positions differently, norms behind the sublayers, and soft-caps.
    "mixed": make_tiny_config(
        positions=(Positions(window=6), Positions(None), Positions(500.0)),
        qk_norm=True,
        post_norms=True,
        score_cap=3.0,
        logit_cap=4.0,
    ),
    "experts": make_tiny_config(shape=LayerShape(4, 2, 24, 5), routed=2, expert_bias=True, sinks=True),
}


def results(number: int, config: ModelConfig) -> dict[str, Any]:
    """All results computed on `number` devices, by name."""
    settings, objective = PruningSettings(), HiddenKL()
    rng = np.random.default_rng(0)
    # Most of these numbers of sequences are not divisible by the number of devices.
    calibration, openings, search, windows = (
        rng.integers(0, config.vocab, shape) for shape in ((21, LENGTH), (7, 4), (12, LENGTH), (11, LENGTH))
    )
    grid = space.uniform_grid(settings.kinds(config), config.depth, 0.5, 5, 0.125)
    chunking.candidate_tokens = lambda: 2 * LENGTH
    stream.COST_TOKENS = 2 * LENGTH
    with devices.in_use(number):
        params = devices.spread(random_params(config, jax.random.key(0), scale=0.2), config.hidden_axes)
        metrics = fisher.output_metrics(params, calibration, config, settings.site_kinds(config), 0)
        plan = fold.FoldPlan(config, grid, settings, metrics=metrics)
        supernet = fold.build_supernet(params, [calibration, openings], plan, batch_tokens=32)
        teacher, dense = quality.measure_dense(params, windows, config)
        pool = teacher_targets(params, search, config, objective)
        found: dict[str, Any] = {
            "metrics": metrics,
            "supernet": arrays_of(supernet),
            "reconstructed": reconstruct(params, metrics[0][1], calibration, config),
            "drift": arrays_of(drawn_back(params, [calibration, openings], plan)),
            "teacher": teacher,
            "quality": (dense, quality.measure(params, windows, config, teacher)),
            "pool": pool,
        }
        requests = [Request(tuple(row[:9].tolist()), tuple(row[9:].tolist())) for row in search]
        likelihoods = [answer.nats for answer in log_likelihoods(params, requests, config)]
        found["log-likelihoods"] = np.array(likelihoods)
        # Two segments in a cache that grows. Eight devices write two groups, the second one with padding.
        with mock.patch.multiple(writing, SEQUENCES=1, SEGMENT=LENGTH // 2, SLOTS=LENGTH // 2):
            own = writing.OwnText(1, 11, LENGTH, 0)
            found["own text"] = np.concatenate(list(writing.write_texts(params, config, own)))
        net = nested.nest(params, random_supernet(config, grid, config.dense_shape.heads), config)
        exists = np.argwhere(grid.exists[0, 0]).ravel()
        candidates = rng.choice(exists, (11, 2, config.depth))
        for count, sequences in ((11, 3), (3, 4), (1, 12)):
            few, some = candidates[:count], np.arange(sequences)
            rest = (pool, some, config, objective)
            found[f"scores of {count} on {sequences}"] = scorer.score_population(net, few, *rest)
        for sequences in (3, 12):
            some = np.arange(sequences)
            found[f"slopes on {sequences}"] = slopes.pool_slopes(
                net, candidates[0], pool, some, config, objective
            )
        given = random_supernet(config, grid, config.dense_shape.heads)
        consumed = nested.nest(params, given, config, consume=True)
        found["supernet that comes back"] = arrays_of(nested.restored(consumed, given, config))
        # Layer by layer from disk.
        scratch, some = offload.Scratch(), np.arange(4)
        lazy = params | {"blocks": scratch.keep(devices.fetch(params["blocks"]))}
        plan = dataclasses.replace(plan, scratch=scratch)
        stored = fold.build_supernet(lazy, [calibration], plan, batch_tokens=32)
        found["metrics on disk"] = fisher.output_metrics(
            lazy, calibration, config, settings.site_kinds(config), 0, scratch=scratch
        )
        found["supernet on disk"] = arrays_of(stored)
        found["drift on disk"] = arrays_of(drawn_back(lazy, [calibration], plan))
        stored = nested.nest(lazy, stored, config, scratch=scratch)
        rest = pool, some, config, objective
        found["scores from disk"] = scorer.score_population(stored, candidates, *rest)
        found["slopes from disk"] = slopes.pool_slopes(stored, candidates[0], *rest)
    return jax.tree.map(np.asarray, found)


def arrays_of(net: Any) -> dict[str, Any]:
    """The arrays of a supernet, by name."""
    return {name: value for name, value in vars(net).items() if name != "kinds"}


def reconstruct(params: Params, metric: jax.Array, text: np.ndarray, config: ModelConfig) -> Any:
    """(what half of the first layer's neurons learn, the tokens of all mini-batches made from two batches).

    The neurons learn from a mini-batch that is the same for any number of devices.
    """
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0))
    axes = {tensor.name: tensor.axes for tensor in config.tensors if tensor.sublayer == "ffn"}
    half = np.arange(config.dense_shape.ffn // 2)
    ffn = {
        name: taken(block[name], half, "F", own) if "F" in own else block[name] for name, own in axes.items()
    }
    (x,), _ = stream.embedded(params, [text[:16]], 16 * LENGTH)
    aim = reconstruction.target(block, x, x + 0.1, jnp.float32(0.5), config)
    batch = reconstruction.MiniBatch(x, aim, stream.token_weights(x, jnp.int32(15), even=True))
    mixed = reconstruction.mix([batch, batch], 3)
    every = np.concatenate(devices.fetch([minibatch.target[minibatch.weights > 0] for minibatch in mixed]))
    minibatch = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), batch)
    plan = reconstruction.LearningPlan(config, 4, 0.5, (0,))
    learnt = reconstruction.learn_from(ffn, [minibatch], metric, plan)
    return learnt, every[np.argsort(every[:, 0])]


def drawn_back(params: Params, texts: list[np.ndarray], plan: fold.FoldPlan) -> Supernet:
    """A supernet whose sites correct drift."""
    settings = dataclasses.replace(plan.settings, accumulation="centre")
    plan = dataclasses.replace(plan, settings=settings, drift=1.0)
    return fold.build_supernet(params, texts, plan, batch_tokens=32)


def largest_collectives(number: int) -> dict[str, tuple[int, str]]:
    """The largest array that each stage gives a device in a collective."""
    quick = PRESETS["quick"]
    pruning = dataclasses.replace(quick.pruning, metric="fisher")
    settings = dataclasses.replace(quick, sparsity=(0.5,), pruning=pruning)
    with devices.in_use(number):
        every = stage_programs.all_stages(make_tiny_config(layers=LAYERS), settings, jnp.dtype("float32"))
        return {stage.name: largest_collective(stage.lower().compile().as_text()) for stage in every}


if __name__ == "__main__":
    path, what, *numbers = sys.argv[1:]
    with open(path, "wb") as file:
        found = [
            results(int(number), CONFIGS[what]) if what in CONFIGS else largest_collectives(int(number))
            for number in numbers
        ]
        pickle.dump(found, file)
