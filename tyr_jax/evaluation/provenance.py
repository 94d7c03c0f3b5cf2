"""How a model was made, as far as its evaluation needs to know: the text it learnt from, and its quality
then."""

from typing import NamedTuple

import numpy as np

from tyr_jax.data import DataSpec, fingerprint, parse_source
from tyr_jax.data.sources import is_described, labels, leaves
from tyr_jax.workspace.records import Recovery, Summary


class Provenance(NamedTuple):
    """What a model was made from, and how it was measured then.

    `spec` is the text that it was made and measured on. `learnt` has all sources that it has learnt from, as
    `describe` writes them, so that none of them has to be read. `fingerprints` and `perplexities` are those
    of the windows that it was measured on, by name.
    """

    spec: DataSpec
    learnt: tuple[str, ...]
    fingerprints: dict[str, str]
    perplexities: dict[str, float | None]

    def perplexity(self, name: str, windows: np.ndarray) -> float | None:
        """Its perplexity on text `name`, or None unless it was measured on exactly these `windows [W, T]`."""
        same = self.fingerprints.get(name) == fingerprint(windows)
        return self.perplexities[name] if same else None

    def has_learnt(self, source: str) -> bool:
        """Whether it has learnt from a part of this source."""
        parts = leaves([parse_source(source)])
        return any(is_described(part, known) for part in parts for known in self.learnt)


def provenance_of(summary: Summary | None, recovery: Recovery | None = None) -> Provenance | None:
    """The provenance that the records of a model's pruning and training give, or None without records."""
    learnt: tuple[str, ...] = ()
    found = None
    if summary:
        spec = summary.settings.data.spec()
        described = [text.source for text in summary.texts.values() if text.source]
        pruned_on = labels(spec.drawn)
        learnt = tuple(each for each in described if each.rpartition(" (")[0] in pruned_on)
        measured = summary.final.quality
        prints = {name: text.sha256 for name, text in summary.texts.items() if name in measured}
        found = Provenance(spec, learnt, prints, {n: each.perplexity for n, each in measured.items()})
    if recovery:
        learnt += tuple(recovery.sources)
        perplexities = {name: each.perplexity for name, each in recovery.quality.recovered.items()}
        found = Provenance(recovery.text.spec(), learnt, recovery.fingerprints, perplexities)
    return found
