"""Problems as files: one .npz each, with a datasheet beside its tables.

A name without a suffix is a problem that the package ships.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.problems.problem import LINKS, Problem
from tyr_jax.search.contract import SearchSpace, Sites
from tyr_jax.space import Budget

SHIPPED = Path(__file__).parent / "data"
"""Problems of the package."""

FORMAT = 1
"""Version of the files."""

TABLES = "base", "alone", "feature", "pairs", "held_out_base", "held_out_alone", "optimum", "start"
"""Arrays of a problem that are stored under their names."""


def problem_names() -> list[str]:
    """Names of the problems that the package ships."""
    return sorted(file.stem for file in SHIPPED.glob("*.npz"))


def save_problem(problem: Problem, file: Path, datasheet: dict[str, Any]) -> None:
    """Write a problem with its `datasheet`: what it was measured on, how, and how well it fits."""
    space = problem.space
    arrays = {name: np.asarray(getattr(problem, name)) for name in TABLES}
    arrays |= {"kept": np.asarray(space.kept), "exists": np.asarray(space.exists)}
    arrays |= {f"budget_{name}": np.asarray(array) for name, array in space.budget._asdict().items()}
    arrays |= {"error": np.asarray(space.sites.error), "share": np.asarray(space.sites.share)}
    facts = {"format": FORMAT, "link": problem.link, "sequences": space.sequences, "length": space.length}
    file.parent.mkdir(parents=True, exist_ok=True)
    small: dict[str, Any] = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()
    }
    np.savez_compressed(file, facts=json.dumps(facts | {"datasheet": datasheet}), **small)


def load_problem(name: str | Path) -> tuple[Problem, dict[str, Any]]:
    """A problem and its datasheet, by the name of one that the package ships, or by its file.

    Raises:
        UserError: there is none, or the file is no problem.
    """
    file = Path(name) if str(name).endswith(".npz") else SHIPPED / f"{name}.npz"
    if not file.is_file():
        raise UserError(
            f"there is no problem {name}: name a .npz file, or one of {', '.join(problem_names())}"
        )
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        facts = json.loads(str(arrays.pop("facts")))
        if facts["format"] != FORMAT:
            raise UserError(f"{file} has format {facts['format']}; this version reads {FORMAT}")
        exists = arrays["exists"]
        budget = Budget(*(arrays[f"budget_{name}"] for name in Budget._fields))
        sites = Sites(arrays["error"], arrays["share"], exists)
        space = SearchSpace(arrays["kept"], exists, budget, sites, facts["sequences"], facts["length"])
        tables = {name: jnp.asarray(arrays[name]) for name in TABLES}
        if facts["link"] not in LINKS:
            raise UserError(f"{file} has the link {facts['link']!r}, but must have one of {', '.join(LINKS)}")
        problem, datasheet = Problem(space=space, link=facts["link"], **tables), facts["datasheet"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} is not a readable problem ({type(error).__name__}); write it again"
        ) from error
    return jax.tree.map(jnp.asarray, problem), datasheet
