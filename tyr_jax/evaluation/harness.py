"""lm-evaluation-harness on models of this project, dense or pruned, without torch.

    from lm_eval import simple_evaluate
    from tyr_jax.evaluation.harness import HarnessModel
    from tyr_jax.io.checkpoint import load_model

    simple_evaluate(model=HarnessModel(load_model("pruned")), tasks=["arc_easy"])

Prompts, answers and metrics are the harness's own. It asks the model for log-likelihoods of continuations,
and for generated text.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import utils
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from tyr_jax.data import chat, encoding
from tyr_jax.errors import UserError
from tyr_jax.evaluation import generation, likelihood, task_data
from tyr_jax.evaluation.likelihood import Request
from tyr_jax.evaluation.scores import TaskScore
from tyr_jax.files import resolved
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.workspace.progress import Progress

FEWSHOT_SEED = 1234
"""Seed for drawing examples, the same as in the harness's own command."""

MOST_TEXT = 2**22
"""Maximum number of characters of a question with its examples."""

MOST_NEW_TOKENS = 256
"""Maximum number of tokens to generate, where a task does not set one."""

Asked = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request as the harness makes it: the texts of context and continuation (or None), and their tokens."""


class HarnessModel(TemplateLM):
    """A model, behind the interface that the harness calls."""

    def __init__(self, model: LoadedModel, progress: Progress | None = None) -> None:
        super().__init__()
        self.model, self.tokenizer, self.progress = model, model.tokenizer, progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {self.model.source} has no EOS token, which tasks need")
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Tokens that fit into the model's context."""
        return self.model.config.context

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness caches requests."""
        return self.model.source

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text. By default, special tokens are added unless the text starts with BOS already."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = bos is None or not string.startswith(bos)
        if len(string) > MOST_TEXT:
            raise UserError(
                f"a question of a task has {len(string)} characters, more than {MOST_TEXT}; cut it"
            )
        ids: list[int] = encoding.encode(self.tokenizer, string, special=add_special_tokens).tolist()
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation rendered with the model's own chat template."""
        return chat.written(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Asked], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._fitted(context, continuation) for (_texts, context, continuation) in requests]
        with self._stage("log-likelihoods", sum(len(one.continuation) for one in asked)) as advance:
            model = self.model
            found = likelihood.log_likelihoods(model.params, asked, model.config, advance)
        for (texts, *_tokens), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return [(answer.nats, answer.greedy) for answer in found]

    def _fitted(self, context: list[int], continuation: list[int]) -> Request:
        """A request cut to fit the model: the context loses its beginning, but keeps at least one token."""
        room = self.max_length + 1 - len(continuation)
        return Request(tuple(context[-max(room, 1) :]), tuple(continuation[: self.max_length]))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, read in windows that each have one token of context."""
        windows: list[Asked] = []
        owners = []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in rolling]
            windows += parts
            owners += [number] * len(parts)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of prompts, each up to a stop sequence or its maximum length."""
        params, texts = generation.unstack(self.model.params, self.model.config), []
        with self._stage("texts", len(requests)) as advance:
            for request in requests:
                text = self._generate(params, *request.args)
                self.cache_hook.add_partial("generate_until", request.args, text)
                texts.append(text)
                advance(1)
        return texts

    def _generate(self, params: Any, prompt: str, asked: dict[str, Any]) -> str:
        options = normalize_gen_kwargs(asked, MOST_NEW_TOKENS)
        ends = handle_stop_sequences(options.pop("until", None), eos=self.tokenizer.decode(self.eot_token_id))
        # A task may ask for more tokens than the context holds; at least one token of the prompt must fit.
        count = min(int(options["max_gen_toks"]), self.max_length - 1)
        sampling = generation.Sampling(
            temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
            top_k=int(options.get("top_k", 0) or 0),
            top_p=float(options.get("top_p", 1.0) or 1.0),
        )
        context = self.tok_encode(prompt)[-(self.max_length - count) :] or [self.prefix_token_id]
        new: list[int] = []
        text = ""
        stop = frozenset({self.eot_token_id})
        for token in generation.generate(params, self.model.config, [context], count, sampling, stop=stop):
            new.append(int(token[0]))
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            if new[-1] in stop or any(end and end in text for end in ends):
                break
        for end in filter(None, ends):
            text = text.split(end)[0]
        return text

    @contextlib.contextmanager
    def _stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        if self.progress is None:
            yield lambda count: None
            return
        with self.progress.stage(name, total, "answers") as stage:
            yield stage.advance


@functools.cache
def known_tasks() -> TaskManager:
    """The harness's own list of tasks, kept because reading it opens thousands of files."""
    return TaskManager()


@contextlib.contextmanager
def opened_tasks(names: Sequence[str], data_dir: Path | None = None) -> Iterator[list[Task | Group]]:
    """The harness's tasks and groups of these names, with their data.

    The data comes from the hub, or from copies in `data_dir`, each under its name on the hub. A copy may lack
    the splits that few-shot examples come from.

    Raises:
        UserError: a task or its data is not there.
    """
    if data_dir and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a directory; name the one that holds the tasks' data")
    with tempfile.TemporaryDirectory(prefix="tyr-jax-tasks-", ignore_cleanup_errors=True) as place:
        own, empty = Path(place, "built"), Path(place, "empty")
        empty.mkdir()
        # The name of a task's data, such as allenai/ai2_arc, could be that of a directory here. Only one in
        # `data_dir` is meant.
        built = task_data.built_in(own, resolved(data_dir)) if data_dir else contextlib.nullcontext()
        with contextlib.chdir(data_dir or empty), built, task_data.silent():
            found = _load_tasks(names, data_dir)
        yield found


def _load_tasks(names: Sequence[str], data_dir: Path | None) -> list[Task | Group]:
    """`opened_tasks`, for data in the current directory."""
    manager = known_tasks()
    found: list[Task | Group] = []
    for name in names:
        # The harness would read a path as the description of a task, which may have code to run.
        if name not in manager.all_tasks:
            raise UserError(f"lm-evaluation-harness has no task '{name}': `lm-eval ls tasks` lists its tasks")
        try:
            found += _load_task(manager, name, () if data_dir is None else ("training", "validation"))
        except UserError:
            raise
        except Exception as error:
            where = f"in {data_dir} and on the hub" if data_dir else "on the hub"
            why = task_data.reasons(error)
            raise UserError(
                f"cannot load the data of the task {name}, which is looked for {where} ({why}): check "
                "the connection, or name a directory that has it with --data-dir"
            ) from error
    return found


def _load_task(manager: TaskManager, name: str, dispensable: tuple[str, ...]) -> list[Task | Group]:
    """A task, a group, or all tasks of a tag.

    A task whose data lacks splits is loaded without the first `dispensable` ones, as few as possible.
    """
    for count in range(len(dispensable) + 1):
        without = {f"{split}_split": None for split in dispensable[:count]}
        # A known task can be loaded with changes only as a member of a group.
        spec = {"group": "local", "task": [{"task": name, **without}]} if count else name
        try:
            loaded = manager.load([spec])
        except KeyError:
            if count == len(dispensable) or name not in manager.all_subtasks:
                raise
        else:
            break
    if count:
        return list(loaded["tasks"].values())
    within = {member for members in loaded["group_map"].values() for member in members}
    named = loaded["groups"] | loaded["tasks"]
    return [task for member, task in named.items() if member not in within]


def evaluate(
    model: LoadedModel,
    tasks: list[Task | Group],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The harness's results for a model, dense or pruned, on `tasks` from `opened_tasks`, with all answers.

    Each question follows `num_fewshot` examples (None: as many as the task sets). The first `limit` questions
    of each task are asked (None: all).

    Raises:
        UserError: examples are asked for, but the data of a task has none apart from its questions.
    """
    for task in (each for each in tasks if num_fewshot and isinstance(each, Task)):
        count = len(list(task.fewshot_docs())) if has_examples(task) else 0
        if count < (num_fewshot or 0):
            raise UserError(
                f"--num-fewshot is {num_fewshot}, but {task.task_name} has {count or 'no'} examples apart "
                "from its questions; add its training split, or ask for fewer"
            )
    utils.setup_logging("ERROR")
    # `simple_evaluate` would also query git and pip about this directory and environment.
    asked = known_tasks().load(tasks)
    for task in asked["tasks"].values():
        own = task.get_config("num_fewshot")
        # A task that is defined without examples stays without.
        if own != 0:
            task.set_config(key="num_fewshot", value=own or 0 if num_fewshot is None else num_fewshot)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    # Standard errors of means have a formula. Those of other metrics are bootstrapped, with as many draws as
    # the harness uses for slow ones.
    return lm_eval.evaluate(HarnessModel(model, progress), asked, limit=limit, bootstrap_iters=100)


def has_examples(task: Task) -> bool:
    """Whether a task's data has examples apart from its questions."""
    return bool(task.has_training_docs() or task.config.fewshot_split)


def scores(results: dict[str, Any], data_dir: Path | None = None) -> list[TaskScore]:
    """Every metric of every task and group in the harness's results. Scores of tasks whose data is in
    `data_dir` include its digest."""
    found = []
    for task, values in results["results"].items():
        data = data_dir and data_dir / results["configs"].get(task, {}).get("dataset_path", "-")
        digest = task_data.digest(data) if data and data.is_dir() else None
        samples = results["n-samples"].get(task, {}).get("effective", values.get("sample_len"))
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{kind}")
                found.append(
                    TaskScore(
                        task=task,
                        shots=results["n-shot"].get(task),
                        questions=samples,
                        metric=metric,
                        value=value,
                        standard_error=error if isinstance(error, float) else None,
                        data=digest,
                    )
                )
    return found
