"""Where the time of the fold and of the search goes, by kind of operation. Usage:

  python scripts/profile_stages.py

Every program runs under JAX's profiler on the dense model's weights, random tokens and a supernet of
arbitrary weights. The shares are of the time that threads spend in operations: matrix products (including
what XLA fused with them), other fusions (norms, softmaxes, activations, sums), moves (copies, slices,
gathers, transposes), and the rest, whose largest part is named.
"""

import collections
import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_search import random_offspring, random_supernet
from jax.profiler import ProfileData
from markdown_table import print_header, print_row
from on_model import OnBatches

from tyr_jax import space
from tyr_jax.model import decoder
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning import hessian, stream
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.scoring import nested, scorer, slopes
from tyr_jax.scoring.objective import KL, Scoring
from tyr_jax.scoring.teacher import teacher_targets

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(.*")
CALLED = re.compile(r"(?:calls=%?|custom_call_target=\")([\w.-]+)")
COMPUTATION = re.compile(r"^%?([\w.-]+) .*\{$")
OUTER = {"while", "conditional", "call", "parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
"""Operations that take no time of their own."""
MOVES = re.compile("copy|slice|gather|scatter|transpose|concatenate|broadcast|pad|iota|select")


@dataclasses.dataclass(frozen=True)
class Profile(OnBatches):
    """What to profile."""

    repeats: int = 3
    """Runs of every program."""


def kinds_of(program: str) -> dict[str, str]:
    """The kind of each operation of a compiled program that takes time of its own."""
    bodies: dict[str, list[str]] = collections.defaultdict(list)
    name = ""
    for line in program.splitlines():
        if match := COMPUTATION.match(line.removeprefix("ENTRY ")):
            name = match[1]
        bodies[name].append(line)
    found = {}
    for match in filter(None, map(INSTRUCTION.match, program.splitlines())):
        (operation, opcode), called = match.groups(), CALLED.search(match[0])
        inside = "\n".join(bodies[called[1]]) if called else ""
        if opcode == "custom-call" and called:
            found[operation] = called[1]
        elif opcode == "dot" or " dot(" in inside:
            found[operation] = "products"
        elif MOVES.search(opcode) or (opcode == "fusion" and MOVES.match(operation)):
            found[operation] = "moves"
        elif opcode not in OUTER:
            found[operation] = "fusions" if opcode == "fusion" else opcode
    return found


class Program(NamedTuple):
    """A jitted `function` with `arguments`, of which it may overwrite one, and `static` arguments."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    overwritten: int | None = None

    def calls(self, count: int) -> list[Callable[[], object]]:
        """Make `count` calls, each with its own copy of the argument that is overwritten."""
        calls: list[Callable[[], object]] = []
        for _ in range(count):
            own = [jnp.copy(a) if i == self.overwritten else a for i, a in enumerate(self.arguments)]
            calls.append(functools.partial(self.function, *own, **self.static))
        return jax.block_until_ready(calls)


def shares(program: Program, repeats: int) -> dict[str, float]:
    """Seconds that threads spend in each kind of operation during one run of a program."""
    lowered = program.function.lower(*program.arguments, **program.static)
    kinds, spent = kinds_of(lowered.compile().as_text()), collections.Counter[str]()
    first, *calls = program.calls(1 + repeats)
    jax.block_until_ready(first())
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for call in calls:
                jax.block_until_ready(call())
        (path,) = Path(directory).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kinds:
                        spent[kinds[event.name]] += event.duration_ns / 1e9 / repeats
    return dict(spent)


def programs(profile: Profile) -> Iterator[Program]:
    """Every program of the fold and of the search."""
    model = profile.load()
    params, config, settings, objective = model.params, model.config, PruningSettings(), KL()
    rng, length, kinds = np.random.default_rng(0), profile.sequence_length, settings.kinds(config)
    grid = space.uniform_grid(kinds, config.depth, profile.sparsity, 9, 0.125)
    block = layer_block(params["blocks"], 0)
    x = jnp.asarray(rng.standard_normal((profile.batch_tokens // length, length, config.hidden), np.float32))
    for row, kind in enumerate(settings.site_kinds(config)):
        one, weight = {"kind": kind, "config": config}, block[kind.output]
        enter, leave, size = stream.site_statistics, stream.add_output, weight.size // config.hidden
        gram = jnp.zeros((1, size, size))
        yield Program(f"{kind.name}: what enters, and XᵀX", enter, (block, x, gram, None), one, 2)
        units, gram = enter(block, x, jnp.zeros_like(gram), None, **one)
        yield Program(f"{kind.name}: what it adds", leave, (block, x, units), one, 1)
        levels, count = (grid.kept[row, 0], grid.exists[row, 0]), kind.count(config)
        site = settings.site(hessian.finish(gram), weight.reshape(size, -1), *levels, count)
        yield Program(f"{kind.name}: order and solves", kind.prune, (site,), {"pruner": settings.pruner})
    tokens = rng.integers(0, config.vocab, (1, length))
    pool = teacher_targets(params, tokens, config, objective)
    net = nested.nest(params, random_supernet(config, grid), config)
    candidates = random_offspring(grid, 4)
    population, _ = scorer.arrange_population(net, candidates, np.arange(1), length, config)
    scoring = Scoring.of_model(config, objective)
    (part,) = scorer.parts_of(net, range(config.depth), scoring)
    state = decoder.begin_forward(decoder.outside(params), jnp.asarray(tokens)[None])
    static = {"scoring": scoring}
    residuals, _ = scorer.run_trunk(net, *population.lead(part), state, **static)
    # All layers run, as if the trunk shared none.
    chunk = population.chunk(0, part, residuals)._replace(shared=jnp.int32(-1))
    yield Program("search: a candidate", scorer.score_chunk, (net, chunk, None, pool), static)
    centre, shares = jnp.asarray(space.centre_distribution(grid)), jnp.zeros((1, *net.kept.shape))
    begun = decoder.begin_forward(decoder.outside(params), jnp.asarray(tokens))
    yield Program("search: slopes", slopes.last_slopes, (net, centre, shares, begun, pool), static)


def main(profile: Profile) -> None:
    """Print a row per program."""
    print_header("program", "products", "other fusions", "moves", "the rest", "of which")
    for program in programs(profile):
        spent = shares(program, profile.repeats)
        total = sum(spent.values())
        rest = {kind: time for kind, time in spent.items() if kind not in ("products", "fusions", "moves")}
        cells = [f"{spent.get(kind, 0) / total:.1%}" for kind in ("products", "fusions", "moves")]
        most = max(rest, key=rest.__getitem__, default="–")
        print_row(program.name, *cells, f"{sum(rest.values()) / total:.1%}", most)


if __name__ == "__main__":
    main(tyro.cli(Profile, description=__doc__))
