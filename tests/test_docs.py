"""The commands in the documentation work: options, extras, links and files exist."""

import contextlib
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.cli.prune import parse
from tyr_jax.settings import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def blocks(page: Path) -> list[str]:
    """The shell commands of a page, block by block."""
    return re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Arguments of every call of `program` on all pages."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            joined = block.replace("\\\n", " ")
            for line in re.findall(rf"{re.escape(program)} ([^\n#&']*)", joined):
                found.append(shlex.split(line.split("    #")[0]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_shell(page: Path) -> None:
    for block in blocks(page):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, ""), block


def test_the_main_job_understands_every_command() -> None:
    jobs = commands("python -m tyr_jax.prune") + commands("tyr-jax:rocm") + commands("tyr-jax")
    # The tutorial on searches first writes a file that its commands need. test_tutorials.py runs them.
    jobs = [job for job in jobs if not {".", "-m", "threshold:Threshold"} & set(job)]
    assert len(jobs) > 10
    for job in jobs:
        if "--help" not in job:
            validate(parse(job).settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_code_exist(page: Path) -> None:
    for name in re.findall(r"`(tyr_jax(?:\.\w+)+)`", page.read_text(encoding="utf-8")):
        found: Any = None
        for end in range(name.count(".") + 1, 0, -1):
            module, rest = ".".join(name.split(".")[:end]), name.split(".")[end:]
            with contextlib.suppress(ModuleNotFoundError):
                found = functools.reduce(getattr, rest, importlib.import_module(module))
                break
        assert found is not None, name


def test_every_equation_names_what_computes_it() -> None:
    """This covers displayed equations. The paragraph after each names the code."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    displayed = re.findall(r"\$\$.+?\$\$\s+(.*?)\n\n", text, flags=re.DOTALL)
    assert len(displayed) >= 5
    for behind in displayed:
        assert re.match(r"— `tyr_jax\.\w+", behind), behind


@pytest.mark.slow
@pytest.mark.long
def test_the_site_builds(tmp_path: Path) -> None:
    """It builds with every link, anchor and code name resolved."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    method = (tmp_path / "site" / "method" / "index.html").read_text(encoding="utf-8")
    assert 'href="../api/#tyr_jax.pruning.obs.obs_step"' in method


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_extras_exist() -> None:
    named = {
        extra
        for text in (page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "Dockerfile"])
        for group in re.findall(r"(?:'\.\[|EXTRAS=)([a-z0-9,]+)", text)
        for extra in group.split(",")
    }
    assert {"tpu", "cuda", "rocm", "data"} <= named <= EXTRAS


def anchors(page: Path) -> set[str]:
    """Anchors of a page that links can point to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target
    for name in re.findall(r"`((?:tyr_jax|tests|scripts|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_dockerfile_copies_what_the_package_is_made_of() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {
        name for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE) for name in line.split()
    }
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "tyr_jax"}
    assert all((ROOT / name).exists() for name in copied)


def test_pages_show_what_was_measured() -> None:
    import pages

    shown = set()
    for page in pages.pages():
        text = page.read_text(encoding="utf-8")
        assert pages.filled(text) == text, f"{page.name} is stale: run `python scripts/measure.py --pages`"
        shown.update(name for _, name, _ in pages.MARKED.findall(text))
    records = {path.stem for path in pages.RECORDS.glob("*.json")}
    assert shown <= records | pages.VIEWS.keys()
