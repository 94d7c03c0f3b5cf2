"""The options of `evaluate`, `generate` and `benchmark`.

Their command lines are generated from these classes, so a field's docstring is its help text.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.errors import require
from tyr_jax.evaluation.generation import Sampling
from tyr_jax.settings import ComputeType


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What to measure a model on: texts, or tasks in their place."""

    evaluation: tuple[str, ...] = ()
    """Texts: `builtin`, .txt, .jsonl, .json or .parquet files, hub datasets (default: those the model was
    measured on when it was made, or else `builtin`)."""
    evaluation_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens in a window (default: as when the model was made, or else 2048)."""
    evaluation_windows: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """At most this many windows of each text (default: as when the model was made, or else 20)."""
    bos: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Start every window with the tokenizer's BOS (default: as when the model was made, or else not)."""
    chat_template: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Render conversations with the model's chat template (default: as when the model was made,
    or else not)."""
    trust_record: bool = False
    """Read the files and hub datasets that the record in the model's directory names. Use this only if you
    trust whoever made the record."""
    tasks: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME,…")] = ()
    """Tasks of lm-evaluation-harness to answer, in place of perplexity; needs `tyr-jax[tasks]`."""
    num_fewshot: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Few-shot examples before each question (default: the task's own number)."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """At most this many questions of each task (default: all)."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the tasks' datasets are, each under its name on the hub, such as DIR/allenai/ai2_arc (default:
    the hub)."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""

    @property
    def task_names(self) -> list[str]:
        """The tasks one by one: several may be given as one string, with commas."""
        return [name.strip() for each in self.tasks for name in each.split(",") if name.strip()]

    def check_tasks(self) -> None:
        """Check what is said of tasks.

        Raises:
            UserError: names the option, its value and what is wanted.
        """
        require(bool(self.task_names) or not self.tasks, "--tasks", "", "names of tasks")
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, "at least 1")
        shots = self.num_fewshot
        require(shots is None or shots >= 0, "--num-fewshot", shots, "0 or more")

    @property
    def text_options(self) -> list[str]:
        """The names of the options of texts that are set."""
        lengths = ("evaluation", "evaluation_length", "evaluation_windows")
        names = (*lengths, "bos", "chat_template", "trust_record")
        return [name for name in names if getattr(self, name) != getattr(EvaluationSettings, name)]


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How prompts are continued."""

    chat: bool = False
    """Put each prompt to the model as a user's message, through its chat template."""
    max_tokens: int = 128
    """Tokens to generate at most, for each prompt."""
    seed: int = 0
    """Seed of the sampling; it has no effect at --temperature 0."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    """Sampling"""


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to time: every length of prompt with every size of batch."""

    prompts: tuple[int, ...] = (128, 512)
    """Lengths of the prompt, in tokens."""
    batches: tuple[int, ...] = (1, 4)
    """Sequences that run together (llama.cpp: one)."""
    tokens: int = 16
    """Tokens to generate in each timing."""
    repeats: int = 5
    """How often each case is timed, dense and pruned in turn; the median is reported."""
    llama_cpp: bool = False
    """Compare in llama.cpp as well, on float32 files; needs `tyr-jax[llama]`."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""

    @property
    def longest(self) -> int:
        """Positions that the longest case takes."""
        return max(self.prompts) + self.tokens
