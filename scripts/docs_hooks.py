"""Hooks of the docs site: code names on its pages become links to the API reference.

A page writes `tyr_jax.pruning.obs.obs_step`, which is readable anywhere. On the site it becomes a link to the
function. A strict build fails if there is no such function. The home page is README.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site, and the files at the root of the repository that they come from."""

LINKS = {"docs/": "", **{f"{name})": f"{page})" for page, name in PAGES.items()}}
"""Link targets in these files, and their targets on the site."""

NAME = re.compile(r"(?<![\[`])`(tyr_jax(?:\.\w+)+)`(?!\])")


def on_files(files: Files, config: Any) -> Files:
    """Add README as the home page, and the other pages of `PAGES`."""
    for name, path in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for link, target in LINKS.items():
            text = text.replace(f"]({link}", f"]({target}")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link code names outside code blocks. The changelog is left alone, because it may name removed code."""
    if page.file.src_uri == "changelog.md":
        return markdown
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else NAME.sub(r"[`\1`][\1]", part) for part in parts)
