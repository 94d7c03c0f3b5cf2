"""Our harness model against lm-evaluation-harness's own model in torch, on the same requests."""

import itertools
import json
import random
import re
import shutil
import sys
from pathlib import Path

import datasets
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tyr_jax import evaluation
from tyr_jax.cli import evaluate
from tyr_jax.data.builtin import builtin_documents
from tyr_jax.errors import UserError
from tyr_jax.evaluation import harness
from tyr_jax.evaluation.harness import HarnessModel
from tyr_jax.evaluation.settings import EvaluationSettings
from tyr_jax.evaluation.tasks import task_scores
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.workspace.progress import Progress

pytestmark = pytest.mark.slow


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    """Requests as tasks make them."""
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def beside(model: LoadedModel, directory: Path) -> HFLM:
    """The same model, run by the harness in torch."""
    save_model(directory, model, dtype="float32")
    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=8)


def several_kinds(text: str, count: int) -> list[tuple[str, str]]:
    """Contexts and continuations: sentences, endings of several lengths, letters after one context, spaces
    between context and continuation, and empty contexts."""
    words = text.split()
    asked = []
    for number in range(count):
        start = 37 * number
        context = " ".join(words[start : start + 5 + number % 25])
        ending = " ".join(words[start + 70 : start + 71 + number % 9])
        kinds = (context, " " + ending), (context + " ", ending), (context, " ABCD"[:2]), ("", ending)
        asked.append(kinds[number % 4])
        if number % 4 == 2:
            asked += [(context, " B"), (context, " C"), (context, " D")]
    return asked[:count]


def check_same(ours: HarnessModel, theirs: HFLM, asked: list[tuple[str, str]]) -> None:
    requests = instances("loglikelihood", asked)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (nats, greedy), (their_nats, their_greedy) in zip(
        asked, found, expected, strict=True
    ):
        tokens = len(ours.tok_encode(continuation))
        assert nats == pytest.approx(their_nats, abs=1e-3 * tokens), (context, continuation)
        assert greedy == their_greedy


@pytest.mark.long
@pytest.mark.smollm2
def test_as_likely_as_in_torch(smollm2: LoadedModel, tmp_path: Path) -> None:
    text = "\n".join(itertools.islice(builtin_documents("topics"), 40))
    check_same(HarnessModel(smollm2), beside(smollm2, tmp_path), several_kinds(text, 200))


def test_texts_beyond_the_context(tiny_model: Path, tmp_path: Path) -> None:
    """A request that does not fit loses its beginning. A whole text is read in windows."""
    model = load_model(str(tiny_model))
    ours, theirs = HarnessModel(model), beside(model, tmp_path)
    theirs._max_length = ours.max_length
    # The windows must differ, because the harness's own model confuses equal ones.
    words = " ".join(random.Random(0).choices("abcdefgh", k=480))
    check_same(ours, theirs, [(words, " a"), (words, " b a"), ("a", " b" * 20)])
    requests = instances("loglikelihood_rolling", [(words,), ("a b",)])
    assert ours.loglikelihood_rolling(requests) == pytest.approx(
        theirs.loglikelihood_rolling(requests), rel=1e-5
    )


def test_text_goes_on_until_it_ends(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model))
    ours, theirs = HarnessModel(model), beside(model, tmp_path)
    theirs._max_length = ours.max_length
    prompts = ["a b c", "d", "h g f e d c b a"]
    free = instances("generate_until", [(prompt, {"max_gen_toks": 12, "until": []}) for prompt in prompts])
    texts = ours.generate_until(free)
    assert texts == theirs.generate_until(free)
    end = texts[0][3:5]
    ending = instances("generate_until", [(prompts[0], {"max_gen_toks": 12, "until": [end]})])
    assert ours.generate_until(ending) == [texts[0].split(end)[0]]


def test_as_many_tokens_as_fit_are_generated(tiny_model: Path) -> None:
    """Of a prompt at least the last token stays."""
    ours = HarnessModel(load_model(str(tiny_model)))
    counts = (0, ours.max_length - 1, ours.max_length, 2 * ours.max_length)
    asked = [("a b c", {"max_gen_toks": count, "until": []}) for count in counts]
    none, most, *more = ours.generate_until(instances("generate_until", asked))
    assert none == ""
    assert most
    assert more == [most, most]


def test_text_is_generated_from_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the token that begins a text, also where the tokenizer adds none."""
    ours = HarnessModel(load_model(str(tiny_model)))
    monkeypatch.setattr(ours, "tok_encode", lambda text, **_: [ours.prefix_token_id] if text else [])
    asked = [(prompt, {"max_gen_toks": 5, "until": []}) for prompt in ("", "begin")]
    nothing, begun = ours.generate_until(instances("generate_until", asked))
    assert nothing == begun


def test_it_is_the_harness_own_evaluation(questions: Path, tiny_model: Path) -> None:
    """The harness's Python interface gives the same results with our model."""
    model, names = load_model(str(tiny_model)), ["arc_easy", "winogrande"]
    with harness.opened_tasks(names, questions) as tasks:
        ours = harness.evaluate(model, tasks, limit=3)
    with harness.opened_tasks(names, questions) as tasks:
        theirs = simple_evaluate(
            model=HarnessModel(model),
            tasks=tasks,
            task_manager=harness.known_tasks(),
            limit=3,
            bootstrap_iters=100,
        )
    for key in ("results", "n-shot", "n-samples", "configs"):
        assert ours[key] == theirs[key], key
    assert ours["n-samples"]["winogrande"]["effective"] == 3


def test_tasks_of_a_directory(questions: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(tiny_model), "--tasks", "arc_easy", "--data-dir", str(questions)]
    evaluate.main([*command, "--json"])
    rows = json.loads(capsys.readouterr().out)["tasks"]
    ours = HarnessModel(load_model(str(tiny_model)))
    best = []
    for number in range(4):
        prompt = f"Question: {'a b c'[: 2 * number + 1]}\nAnswer:"
        choices = instances("loglikelihood", [(prompt, f" {choice}") for choice in ("a", "b c", "d e f")])
        nats = [answer[0] for answer in ours.loglikelihood(choices, disable_tqdm=True)]
        best.append(nats.index(max(nats)) == number % 3)
    (accuracy,) = (row for row in rows if row["metric"] == "acc")
    assert accuracy["value"] == sum(best) / 4
    assert (accuracy["task"], accuracy["shots"], accuracy["questions"]) == ("arc_easy", 0, 4)
    assert accuracy["standard_error"] is not None
    evaluate.main([*command, "--limit", "2"])
    assert "arc_easy" in capsys.readouterr().out


def test_local_data_is_read_every_time(questions: Path, tiny_model: Path, tmp_path: Path) -> None:
    """This also holds if `datasets` has built the task before, from another directory or from other rows."""

    def measured(directory: Path) -> tuple[int, str | None]:
        with Progress(quiet=True) as progress:
            choice = EvaluationSettings(tasks=("arc_easy",), data_dir=directory)
            found = task_scores(choice, lambda: load_model(str(tiny_model)), progress)
        assert list(Path(datasets.config.HF_DATASETS_CACHE).glob("*arc*")) == []
        return found[0].questions, found[0].data

    four, digest = measured(questions)
    assert (four, measured(questions)) == (4, (4, digest))
    data = Path("allenai", "ai2_arc", "test.jsonl")
    rows = (questions / data).read_text().splitlines(keepends=True)
    other = shutil.copytree(questions, tmp_path / "other")
    (other / data).write_text(rows[0])
    one, another = measured(other)
    assert (one, another == digest) == (1, False)
    (questions / data).write_text("".join(rows[:2]))
    two, changed = measured(questions)
    assert (two, changed in (digest, another)) == (2, False)
    for content in ("{", ""):
        (questions / data).write_text(content)
        with pytest.raises(UserError, match="cannot load the data of the task arc_easy"):
            measured(questions)


@pytest.mark.parametrize("name", ["mine", "mine.yaml", "./mine.yaml"])
def test_a_file_in_the_place_of_a_task_is_not_run(name: str, questions: Path, tmp_path: Path) -> None:
    (questions / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef doc(doc): return doc")
    (questions / "mine.yaml").write_text(
        "task: mine\ndataset_path: allenai/ai2_arc\ndataset_name: ARC-Easy\ntest_split: test\n"
        "doc_to_text: !function code.doc\ndoc_to_target: a\n"
    )
    with (
        pytest.raises(UserError, match=f"has no task '{re.escape(name)}'"),
        harness.opened_tasks([name], questions),
    ):
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["/secret.jsonl", "../../../secret.jsonl", "file:///secret.jsonl"])
def test_data_outside_the_directory_is_refused(named: str, questions: Path) -> None:
    data = questions / "allenai" / "ai2_arc"
    secret = questions.with_name("secret.jsonl")
    shutil.copy(data / "test.jsonl", secret)
    named = named.replace("/secret", f"{secret.parent}/secret") if named[0] in "/f" else named
    card = data / "README.md"
    card.write_text(card.read_text().replace("path: test.jsonl", f"path: {named}"))
    with (
        pytest.raises(UserError, match=r"names .*secret\.jsonl, outside of it|cannot load the data"),
        harness.opened_tasks(["arc_easy"], questions),
    ):
        pass


def test_a_question_that_no_model_can_read(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="a question of a task has 4194305 characters, more than"):
        HarnessModel(load_model(str(tiny_model))).tok_encode("a" * (2**22 + 1))


def test_what_is_not_there(
    questions: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(UserError, match=r"lm-evaluation-harness has no task 'no_such_task'"),
        harness.opened_tasks(["no_such_task"]),
    ):
        pass
    command = [str(tiny_model), "--tasks", "arc_easy", "--data-dir", str(questions)]
    with pytest.raises(SystemExit):
        evaluate.main([*command[:-1], "gone"])
    assert "--data-dir gone is not a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--num-fewshot", "2"])
    assert "no examples" in capsys.readouterr().err
    monkeypatch.delattr(evaluation, "harness")
    monkeypatch.setitem(sys.modules, "tyr_jax.evaluation.harness", None)
    with pytest.raises(SystemExit):
        evaluate.main(command)
    assert "pip install 'tyr-jax[tasks]'" in capsys.readouterr().err
