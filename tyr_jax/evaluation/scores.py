"""The results of an evaluation: a model's perplexity on a text, and its score on a task."""

from typing import NamedTuple


class TextPerplexity(NamedTuple):
    """A model's perplexity on a text, and what was read of the text.

    `windows` windows of `length` tokens were read, `tokens` tokens in all. With `bos`, each starts with the
    tokenizer's BOS. `perplexity_when_made` is the perplexity on the same windows when the model was made, or
    None if it was not measured on them.
    """

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
    """A metric of lm-evaluation-harness on a task or a group of tasks.

    `questions` is the number of questions asked, and `shots` the number of examples before each. `data` is
    the sha256 of the task's data, if that is local.
    """

    task: str
    shots: int | None
    questions: int
    metric: str
    value: float
    standard_error: float | None
    data: str | None = None
