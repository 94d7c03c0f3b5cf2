"""Every command says that a model overflows if its predictions are not finite."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tyr_jax.cli import evaluate, finetune, generate, prune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def overflowing(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with finite float32 weights whose products overflow."""
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("model") / "overflowing"))
    weights = load_file(model / "model.safetensors")
    large = {name: array * 1e38 for name, array in weights.items() if "down_proj" in name}
    save_file(weights | large, model / "model.safetensors", metadata={"format": "pt"})
    return str(model)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused, and return its error sentence."""

    def run(main: Callable[[list[str]], None], *arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, arguments)))
        assert stopped.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()[-1]

    return run


@pytest.mark.parametrize("options", [(), ("--temperature", 1), ("--temperature", 1, "--top-p", 0.5)])
def test_generation(options: tuple[object, ...], overflowing: str, refused: Callable[..., str]) -> None:
    for prompts in (["the cat"], ["the cat", "sat"]):
        sentence = refused(generate.main, overflowing, *prompts, "--max-tokens", 3, *options)
        assert sentence.startswith("error: the predictions of the model on a prompt are not finite")


def test_perplexity(overflowing: str, tiny_text: Path, refused: Callable[..., str]) -> None:
    text = ["--evaluation", tiny_text, "--evaluation-length", 32]
    for more in ([], ["--json"]):
        sentence = refused(evaluate.main, overflowing, *text, *more)
        assert f"the predictions of {overflowing} on {tiny_text.name} are not finite" in sentence


def test_training(overflowing: str, tiny_text: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """The error does not blame the learning rate."""
    few = ["--tokens", 256, "--sequence-length", 32, "--step-tokens", 64, "--evaluation-length", 32]
    own = ["--data", tiny_text, "--goal", "next-token", "--output", tmp_path / "new"]
    assert "the model overflows there" in refused(finetune.main, overflowing, *own, *few)
    assert not (tmp_path / "new").exists()


def test_pruning(
    overflowing: str, tiny_arguments: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    own = ["--model", overflowing, "--output", tmp_path / "new"]
    assert "the model overflows there" in refused(prune.main, *tiny_arguments, *own)
