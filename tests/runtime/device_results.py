"""What the stages compute on 1, 2, … devices of one process: run by test_devices with many CPU devices."""

import dataclasses
import pickle
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reference import random_supernet
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.likelihood import Request, log_likelihoods
from tyr_jax.model.spec import ModelConfig, Params, layer_block, random_params
from tyr_jax.planning import programs
from tyr_jax.planning.collectives import largest_collective
from tyr_jax.pruning import fisher, fold, reconstruction, stream
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices, offload
from tyr_jax.scoring import chunking, nested, slopes
from tyr_jax.scoring.objective import HiddenKL
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.settings import PRESETS

LENGTH = 16
LAYERS = 24
"""So many that one tensor of all layers is larger than a layer's at all levels."""


def results(number: int) -> dict[str, Any]:
    """Everything that is computed on `number` devices, by name."""
    config = make_tiny_config(qkv_bias=True)
    settings, objective = PruningSettings(), HiddenKL()
    rng = np.random.default_rng(0)
    # Numbers of sequences that no number of devices divides.
    calibration, openings, search, windows = (
        rng.integers(0, config.vocab, shape) for shape in ((21, LENGTH), (7, 4), (12, LENGTH), (11, LENGTH))
    )
    grid = space.uniform_grid(settings.kinds(config), config.depth, 0.5, 5, 0.125)
    chunking.candidate_tokens = lambda: 2 * LENGTH
    stream.SHARE_TOKENS = 2 * LENGTH
    with devices.in_use(number):
        params = devices.spread(random_params(config, jax.random.key(0), scale=0.2), config.hidden)
        metrics = fisher.output_metrics(params, calibration, config, 0)
        plan = fold.FoldPlan(config, grid, settings, metrics=metrics)
        supernet = fold.build_supernet(params, [calibration, openings], plan, batch_tokens=32)
        teacher, dense = quality.measure_dense(params, windows, config)
        pool = teacher_targets(params, search, config, objective)
        found: dict[str, Any] = {
            "metrics": metrics,
            "supernet": dataclasses.asdict(supernet),
            "reconstructed": reconstruct(params, metrics[0][1], calibration, config),
            "drift": dataclasses.asdict(drawn_back(params, [calibration, openings], plan)),
            "teacher": teacher,
            "quality": (dense, quality.measure(params, windows, config, teacher)),
            "pool": pool,
        }
        requests = [Request(tuple(row[:9].tolist()), tuple(row[9:].tolist())) for row in search]
        likelihoods = [answer.nats for answer in log_likelihoods(params, requests, config)]
        found["log-likelihoods"] = np.array(likelihoods)
        net = nested.nest(params, random_supernet(config, grid, config.dense_shape.heads), config)
        exists = np.argwhere(grid.exists[0, 0]).ravel()
        candidates = rng.choice(exists, (11, 2, config.depth))
        for count, sequences in ((11, 3), (3, 4), (1, 12)):
            few, some = candidates[:count], np.arange(sequences)
            rest = (pool, some, config, objective)
            found[f"scores of {count} on {sequences}"] = nested.score_population(net, few, *rest)
        for sequences in (3, 12):
            some = np.arange(sequences)
            found[f"slopes on {sequences}"] = slopes.pool_slopes(
                net, candidates[0], pool, some, config, objective
            )
        # Layer by layer from disk.
        scratch, some = offload.Scratch(), np.arange(4)
        lazy = params | {"blocks": scratch.keep(devices.fetch(params["blocks"]))}
        stored = fold.build_supernet(lazy, [calibration], plan, batch_tokens=32, scratch=scratch)
        found["metrics on disk"] = fisher.output_metrics(lazy, calibration, config, 0, scratch=scratch)
        found["supernet on disk"] = dataclasses.asdict(stored)
        found["drift on disk"] = dataclasses.asdict(drawn_back(lazy, [calibration], plan, scratch))
        stored = nested.nest(lazy, stored, config, scratch=scratch)
        rest = pool, some, config, objective
        found["scores from disk"] = nested.score_population(stored, candidates, *rest)
        found["slopes from disk"] = slopes.pool_slopes(stored, candidates[0], *rest)
    return jax.tree.map(np.asarray, found)


def reconstruct(params: Params, metric: jax.Array, text: np.ndarray, config: ModelConfig) -> Any:
    """What half of the first layer's neurons learn, and what that layer passes on."""
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0))
    half = block["down"].shape[0] // 2
    small = block | {"down": block["down"][:half]} | {name: block[name][:, :half] for name in ("gate", "up")}
    (pruned, real), (dense, _) = (stream.embedded(params, [text], 2 * LENGTH) for _ in range(2))
    streams = reconstruction.Streams(0, pruned, dense, real)
    # On other numbers of devices batches are of other sizes, and so are steps: here of one batch.
    plan = reconstruction.Plan(config, 0, 0.5, 0)
    _, behind = reconstruction.reconstruct_layer(small, block, metric, streams, plan)
    passed, target = (
        np.concatenate([x[:count] for x, count in zip(devices.fetch(each), real, strict=True)])
        for each in (behind.pruned, behind.dense)
    )
    weights = stream.token_weights(jnp.asarray(passed[:16]), jnp.int32(16), even=True)
    batch = devices.place(jnp.asarray(passed[:16])), devices.place(jnp.asarray(target[:16])), weights
    ffn = {name: small[name] for name in ("gate", "up", "down", "mlp_norm")}
    learnt = reconstruction.learn_layer(ffn, [batch], metric, config, 4, np.random.default_rng(0))
    return learnt, passed


def drawn_back(
    params: Params, texts: list[np.ndarray], plan: fold.FoldPlan, scratch: offload.Scratch | None = None
) -> Supernet:
    """A supernet whose sites take back drift."""
    settings = dataclasses.replace(plan.settings, accumulation="centre")
    plan = dataclasses.replace(plan, settings=settings, drift=1.0)
    return fold.build_supernet(params, texts, plan, batch_tokens=32, scratch=scratch)


def largest_collectives(number: int) -> dict[str, tuple[int, str]]:
    """The largest array that every stage gives a device in a collective."""
    quick = PRESETS["quick"]
    pruning = dataclasses.replace(quick.pruning, metric="fisher")
    settings = dataclasses.replace(quick, sparsity=(0.5,), pruning=pruning)
    with devices.in_use(number):
        every = programs.all_stages(make_tiny_config(layers=LAYERS), settings, jnp.dtype("float32"))
        return {stage.name: largest_collective(stage.lower().compile().as_text()) for stage in every}


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        numbers = [int(number) for number in sys.argv[2:]]
        found = {number: results(number) for number in numbers}
        pickle.dump((found, {number: largest_collectives(number) for number in numbers if number > 1}), file)
