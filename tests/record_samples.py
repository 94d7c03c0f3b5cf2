"""Records like those that small runs write."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyr_jax.workspace.events import read_entries

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

NASTY: tuple[Any, ...] = (
    *(None, True, -3, 10**30, 1.7e308, float("nan")),
    *("", "a|b`c`](x)[/y]<script>\n\x1b[31m", [], {}, [None], {"a": 1}, DEEP),
)
"""Values to put in the place of expected ones."""


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """All events with the name `event` in a file."""
    return [entry for entry in read_entries(path) if entry["event"] == event]


def quality(perplexity: float | None, kl: float | None) -> dict[str, Any]:
    return {"words.txt": {"perplexity": perplexity, "kl": kl}, "builtin:topics": {"perplexity": 9.5, "kl": 0}}


def size(parameters: int) -> dict[str, int]:
    return {"block_parameters": parameters // 2, "parameters": parameters, "bytes": 4 * parameters}


def units(total: int, kept: int, noun: str) -> dict[str, Any]:
    share = 1 - kept / total
    return {"total": total, "kept": kept, "removed": total - kept, "sparsity": share, "noun": noun}


def pruned(attention: list[int], ffn: list[int], perplexity: float) -> dict[str, Any]:
    return {
        "kept": {"attention": attention, "ffn": ffn},
        "units": {"attention": units(12, 6, "heads"), "ffn": units(144, 72, "FFN neurons")},
        "size": size(32480),
        "quality": quality(perplexity, 0.5),
    }


def spec() -> dict[str, Any]:
    return {
        "calibration": ["builtin", "/texts/words.txt@2"],
        "search_text": [],
        "evaluation": [],
        "sequence_length": 32,
        "search_length": 32,
        "calibration_tokens": 512,
        "calibration_noise": 0.2,
        "calibration_openings": 512,
        "search_tokens": 256,
        "evaluation_length": 32,
        "evaluation_windows": 4,
        "bos": False,
        "self_temperature": 1.0,
        "chat_template": False,
    }


def rounds() -> list[dict[str, Any]]:
    history = [
        {"generation": 1, "objective": 0.28, "candidate_tokens": 896, "search": "descent"},
        {"generation": 1, "objective": 0.26, "parent": 0.27, "candidate_tokens": 256, "search": "evolution"},
        {"generation": 2, "objective": 0.25, "parent": None, "candidate_tokens": 512, "search": "evolution"},
    ]
    last = {"attention": [4, 2, 0], "ffn": [40, 16, 16]}
    first = {"attention": [3, 2, 1], "ffn": [32, 16, 24]}
    step = {"attention": 1, "ffn": 8}
    return [
        {"round": number, "step": step, "kept": kept, "history": history}
        for number, kept in enumerate((first, last), start=1)
    ]


def summary() -> dict[str, Any]:
    """A `summary.json`."""
    text = {"sequences": 16, "length": 32, "sha256": "19" * 32}
    settings = {"model": "dense", "sparsity": [0.5], "output": "pruned", "layout": "compressed"}
    searches = [{"search": "descent", "generations": 1}, {"search": "evolution", "generations": 2}]
    made = {
        "format_version": 1,
        "arguments": ["--model", "dense", "--sparsity", "0.5"],
        "settings": {**settings, "data": spec(), "search": searches},
        "versions": {"tyr_jax": "0.1.0", "python": "3.11.7"},
        "device": "1 × cpu",
        "sparsity": {"asked": 0.5, "attention": 0.5, "ffn": 0.5},
        "base_model": {"name": "Dense-1M", "hub_id": "someone/Dense-1M", "licence": "mit"},
        "distribution": {"attention": [4, 2, 0], "ffn": [40, 16, 16]},
        "dense": {"size": size(42464), "quality": quality(546.6, 0.0)},
        "uniform": pruned([2, 2, 2], [24, 24, 24], 559.5),
        "searched": pruned([4, 2, 0], [40, 16, 16], 556.3),
        "rounds": rounds(),
        "health": {
            "damping_raised": [{"stage": "prune uniform", "site": "layer 1 ffn", "damping": 0.1}],
            "objectives_not_finite": 1,
        },
        "texts": {
            "calibration": {**text, "source": None},
            "search": {**text, "source": None},
            "words.txt": {**text, "source": "/texts/words.txt (sha256 4af4)"},
        },
        "seconds": {"prune uniform": 1.7},
        "shared_seconds": {"load model": 0.6},
    }
    return copy.deepcopy(made)


def recovery() -> dict[str, Any]:
    """A `recovery.json`."""
    return {
        "format_version": 1,
        "arguments": ["pruned", "--output", "recovered"],
        "settings": {
            "model": "pruned",
            "output": "recovered",
            "data": ["/texts/words.txt"],
            "loss": {"goal": "kd", "hidden": 0.0},
            "training": {"method": "lora", "rank": 4},
        },
        "versions": {"tyr_jax": "0.1.0"},
        "sources": ["/texts/words.txt (sha256 4af4)"],
        "text": spec(),
        "fingerprints": {"words.txt": "94" * 32, "builtin:topics": "95" * 32},
        "trained_tokens": 2048,
        "losses": [0.4, 0.3, 0.2],
        "quality": {
            "dense": quality(546.6, 0.0),
            "pruned": quality(556.3, 0.4),
            "recovered": quality(550.1, 0.3),
        },
        "seconds": {"train": 1.6},
    }


def benchmark() -> dict[str, Any]:
    """A `benchmark.json`."""
    case = {"engine": "JAX", "prompt": 16, "batch": 1}
    return {
        "format_version": 1,
        "device": "1 × cpu",
        "rows": [
            {**case, "measure": "first token", "dense": 0.002, "pruned": 0.001, "limit": 1.9},
            {**case, "measure": "each token after", "dense": 0.0004, "pruned": 0.0002, "limit": 1.5},
        ],
    }


def events() -> list[dict[str, Any]]:
    """The lines of an `events.jsonl`."""
    raised = {"site": "layer 1 ffn", "damping": 0.1, "stage": "prune uniform"}
    lost = {"round": 1, "stage": "round 1/1: evolution", "step": 3, "candidates": 2}
    return [
        {"event": "log", "seconds": 0.0, "format_version": 1},
        {"event": "start", "seconds": 0.0, "arguments": ["--model", "dense"]},
        {"event": "stage", "seconds": 0.1, "ended": {"part": "", "stage": "load model", "seconds": 0.1}},
        {"event": "damping raised", "seconds": 0.2, **raised},
        {"event": "objective not finite", "seconds": 0.3, **lost},
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every part of a JSON value, except the value itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def altered(record: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a record, each with one part removed, repeated or replaced, and what was done to it."""
    for path in places(record):
        for what in ("gone", "more", *NASTY):
            copied = copy.deepcopy(record)
            owner, last = copied, path[-1]
            for key in path[:-1]:
                owner = owner[key]
            if what == "gone":
                del owner[last]
            elif what == "more" and isinstance(owner, list):
                owner.append(owner[last])
            else:
                owner[f"{last}<b>[/x]" if what == "more" else last] = owner[last] if what == "more" else what
            yield f"{'.'.join(map(str, path))}: {str(what)[:30]}", copied
