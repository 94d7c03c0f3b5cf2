"""What measuring a model finds: its perplexity on a text, and a metric of it on a task."""

from typing import NamedTuple


class TextPerplexity(NamedTuple):
    """A model's perplexity on a text, and what was read of that: `windows` of `length` tokens, in all
    `tokens`, with the tokenizer's BOS or not; what it was on the same windows when the model was made, if it
    was measured on them."""

    text: str
    source: str
    part: str
    windows: int
    length: int
    tokens: int
    bos: bool
    perplexity: float
    perplexity_when_made: float | None


class TaskScore(NamedTuple):
    """A metric of lm-evaluation-harness on a task or group of tasks: of so many `questions`, with so many
    examples (`shots`) before each; `data` is the sha256 of the task's data where that is local."""

    task: str
    shots: int | None
    questions: int
    metric: str
    value: float
    standard_error: float | None
    data: str | None = None
