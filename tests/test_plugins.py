"""References `module:ATTRIBUTE`: where modules are searched for, and the error for each mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.plugins import load_object

ROOT = str(Path(__file__).parents[1])

MODULES = {
    "plugin_good.py": "import plugin_neighbour\nTHING = plugin_neighbour.VALUE\nclass Kind: ...\n",
    "plugin_neighbour.py": "VALUE = 7\n",
    "plugin_broken.py": "raise ValueError('no luck today\\nand more')\n",
    "plugin_syntax.py": "def (:\n",
    "plugin_needs.py": "import plugin_that_nobody_has\n",
    "plugin_package/__init__.py": "",
    "plugin_package/inner.py": "THING = 'deep'\n",
}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with modules in it that later tests do not see."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_modules_of_the_current_directory_and_installed_ones() -> None:
    assert load_object("plugin_good:THING", "family") == 7
    assert load_object("plugin_package.inner:THING", "family", str) == "deep"
    assert load_object("plugin_good:Kind", "search", type).__name__ == "Kind"
    assert load_object("pathlib:Path", "search", (int, type)) is Path


def test_the_search_grows_once(directory: Path) -> None:
    path, finders = [*sys.path], len(sys.meta_path)
    for _ in range(2):
        load_object("plugin_good:THING", "family")
    assert sys.path == path
    assert len(sys.meta_path) == finders + 1


def imported(command: list[str], directory: Path, **variables: str) -> tuple[set[str], str]:
    """(the top-level modules that a process imports, its errors)."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": ROOT} | variables,
        capture_output=True,
        text=True,
    )
    lines = [line.split("|") for line in ended.stderr.splitlines() if line.startswith("import time:")]
    errors = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert ended.returncode == 0, errors
    return {line[-1].strip().partition(".")[0] for line in lines}, "\n".join(errors)


@pytest.mark.slow
def test_nothing_in_the_current_directory_hides_what_is_installed(
    tmp_path: Path, tiny_model: Path, tiny_text: Path
) -> None:
    """Not even packages without an `__init__.py`, and not after a plug-in was found there."""
    few = ["--evaluation-length", "16", "--evaluation-windows", "2", "--family", "plugin_family:FAMILY"]
    command = ["-m", "tyr_jax.evaluate", str(tiny_model), "--evaluation", str(tiny_text), *few]
    family = "import dataclasses\nfrom tyr_jax.model.families import FAMILIES\n"
    family += "FAMILY = dataclasses.replace(FAMILIES['llama'], model_type='of_mine')\n"
    (tmp_path / "plugin_family.py").write_text(family)
    names, _ = imported(command, tmp_path)
    assert {"jax", "orbax", "google", "transformers"} <= names
    # Python itself imports these before it runs anything of this package.
    early, _ = imported(["-m", "this"], tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    (here / "plugin_family.py").write_text(family)
    for name in names - early - {"tyr_jax", "plugin_family", ""}:
        (here / f"{name}.py").write_text("open('ran', 'a').write(f'{__name__} ')")
    (here / "google").mkdir()
    (here / "google.py").rename(here / "google" / "__init__.py")
    imported(command, here)
    assert not (here / "ran").exists(), (here / "ran").read_text()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugin_good", "family 'plugin_good' is not of the form MODULE:NAME"),
        ("plugin_good:", "is not of the form MODULE:NAME"),
        (":THING", "is not of the form MODULE:NAME"),
        ("plugin_good:THING:more", "is not of the form MODULE:NAME"),
        ("./plugin_good.py:THING", "is not of the form MODULE:NAME"),
        (".plugin_good:THING", "is not of the form MODULE:NAME"),
        ("plugin_gone:THING", "family 'plugin_gone:THING': no module 'plugin_gone' in "),
        ("plugin_package.gone:THING", "no module 'plugin_package.gone'"),
        ("plugin_gone.inner:THING", "no module 'plugin_gone'"),
        ("plugin_broken:THING", "module 'plugin_broken' raised ValueError on import: no luck today"),
        ("plugin_syntax:THING", "module 'plugin_syntax' raised SyntaxError on import: "),
        (
            "plugin_needs:THING",
            "module 'plugin_needs' raised ModuleNotFoundError on import: No module named "
            "'plugin_that_nobody_has'",
        ),
        ("plugin_good:thing", "family 'plugin_good:thing': module 'plugin_good' ("),
        ("plugin_good:THING", "family 'plugin_good:THING' is of type int, but must be of type str or list"),
    ],
)
def test_mistakes_are_named_in_one_line(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_object(reference, "family", (str, list))
    assert "\n" not in str(caught.value)


def test_a_console_script_finds_them_too(directory: Path) -> None:
    """Its search path begins with its own directory, not with the current one."""
    script = directory / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text("from tyr_jax.plugins import load_object\nprint(load_object('plugin_good:THING', 'x'))")
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert (ended.returncode, ended.stdout) == (0, "7\n"), ended.stderr
