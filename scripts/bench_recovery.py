"""How fast recovery trains, compared with the same distillation in torch (LoRA by PEFT). Usage:

  pip install peft
  python scripts/bench_recovery.py

The student has the dense model's shape with narrower FFNs. The teacher is the dense model. Each step of AdamW
learns the teacher's predictions at all tokens. It prints the FLOPs that a token needs at least, the tokens
per second (median), and the share of the matmul rate that these reach. The rate is that of the same type,
measured in the same run. In bfloat16, this project keeps what is trained, and the moments, in float32; torch
keeps all in bfloat16.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate
from on_model import OnModel, torch_model

from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import cast, of_model, random_params
from tyr_jax.recovery import adapters, train
from tyr_jax.recovery.adapters import Method
from tyr_jax.recovery.loss import Loss, TrainingRows
from tyr_jax.recovery.train import Models, State, Training, TrainingPlan
from tyr_jax.runtime.timing import medians
from tyr_jax.settings import ComputeType


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    neurons: int = 624
    """Neurons in each layer of the student."""
    methods: tuple[Method, ...] = ("lora", "full")
    """What is trained."""
    dtypes: tuple[ComputeType, ...] = ("float32", "bfloat16")
    """Types in which models run."""
    rank: int = 16
    """Rank of LoRA."""
    sequence_length: int = 512
    """Tokens of a row."""
    rows: int = 4
    """Rows of a step."""
    repeats: int = 5
    """Timings of each, interleaved."""


def flops(student: ModelConfig, teacher: ModelConfig, length: int, method: Method) -> float:
    """Least FLOPs of a token: a forward of the teacher, and a forward of the student with its gradients.

    The gradients are those of the activations everywhere, and those of the blocks' weights if they are
    trained. The products of LoRA itself are not counted.
    """
    blocks, taught = (block_flops(one, unit_counts(one), length) for one in (student, teacher))
    head = head_flops(student)
    return taught + head + (2 if method == "lora" else 3) * blocks + 2 * head


def our_step(
    bench: Bench, teacher: LoadedModel, student: ModelConfig, method: Method, tokens: np.ndarray
) -> Callable[[], object]:
    """A function that runs the next step of `tyr_jax.recovery.train` at each call."""
    embed = teacher.params["embed"]
    small = random_params(student, jax.random.key(0)) | {"embed": embed}
    small = of_model(lambda tensors: cast(tensors, embed.dtype), small)
    plan = TrainingPlan(student, teacher.config, Training(method=method, rank=bench.rank), Loss(), 1000)
    models = Models(adapters.frozen(small, method), teacher.params)
    rows = TrainingRows(jnp.asarray(tokens)[None], jnp.ones((1, *tokens.shape), bool))

    def steps() -> Iterator[jax.Array]:
        state: State = train.begin_training(small, plan, 0)
        while True:
            state, loss = train.step(state, models, rows, plan)
            yield loss

    return steps().__next__


def torch_step(
    bench: Bench, teacher: LoadedModel, student: ModelConfig, method: Method, tokens: np.ndarray
) -> Callable[[], object]:
    """The same step, written the usual way in torch."""
    import torch

    dtype = str(teacher.params["embed"].dtype)
    taught, model = torch_model(teacher.config, dtype).eval(), torch_model(student, dtype)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=bench.rank, lora_alpha=32, target_modules="all-linear"))
    else:
        model.model.embed_tokens.weight.requires_grad_(False)
    learnt = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    inputs = torch.from_numpy(tokens).long()

    def step() -> float:
        with torch.no_grad():
            aim = torch.log_softmax(taught(inputs, use_cache=False).logits[:, :-1], dim=-1)
        found = torch.log_softmax(model(inputs, use_cache=False).logits[:, :-1], dim=-1)
        loss = torch.nn.functional.kl_div(
            found.flatten(0, 1), aim.flatten(0, 1), None, None, "batchmean", True
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def main(bench: Bench) -> None:
    """Print a row per method, type and program."""
    models = {dtype: bench.load(dtype) for dtype in bench.dtypes}
    dense = next(iter(models.values())).config
    shape = dense.dense_shape
    student = dataclasses.replace(
        dense, layers=(LayerShape(shape.heads, shape.kv_heads, bench.neurons),) * dense.depth
    )
    tokens = np.random.default_rng(0).integers(0, dense.vocab, (bench.rows, bench.sequence_length))
    rates = {dtype: matmul_rate(dtype=dtype) for dtype in bench.dtypes}
    shown = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    print(f"matmul rate: {shown}; steps of {tokens.size} tokens")
    print_header("trained", "type", "program", "MFLOP/token", "tokens/s", "of the matmul rate", "of torch's")
    beside = {name for name in ("torch", "peft") if importlib.util.find_spec(name)}
    for method, (dtype, teacher) in itertools.product(bench.methods, models.items()):
        given = bench, teacher, student, method, tokens
        runs = {"tyr_jax": our_step(*given)}
        if beside >= ({"torch", "peft"} if method == "lora" else {"torch"}):
            runs["torch"] = torch_step(*given)
        needed = flops(student, dense, bench.sequence_length, method)
        times = medians(runs, bench.repeats)
        for name, time in times.items():
            speed = tokens.size / time
            row = f"{needed / 1e6:.0f}", f"{speed:.0f}", f"{speed * needed / rates[dtype]:.0%}"
            print_row(method, dtype, name, *row, f"{times['torch'] / time:.2f}" if "torch" in times else "–")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
