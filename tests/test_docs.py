"""What the documentation tells people to type can be typed: options, extras, links and files exist."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from tyr_jax.cli.prune import parse
from tyr_jax.settings import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    assert blocks(page)
    for block in blocks(page):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, ""), block


def test_the_main_job_understands_every_command() -> None:
    jobs = commands("python -m tyr_jax.prune") + commands("tyr-jax:rocm") + commands("tyr-jax")
    jobs = [job for job in jobs if "." not in job]
    assert len(jobs) > 10
    for job in jobs:
        if "--help" not in job:
            validate(parse(job).settings)


def test_extras_exist() -> None:
    named = {
        extra
        for text in (page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "Dockerfile"])
        for group in re.findall(r"(?:'\.\[|EXTRAS=)([a-z0-9,]+)", text)
        for extra in group.split(",")
    }
    assert {"tpu", "cuda", "rocm", "data"} <= named <= EXTRAS


def anchors(page: Path) -> set[str]:
    """What links within a page can name."""
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
