"""Tables of latencies: interpolation by hand, and files that are none."""

import os
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.model.spec import LayerShape
from tyr_jax.pruning.latency import Latencies, read_latencies

TABLE = Latencies(
    device="none",
    tokens=1,
    attention=((1, 1, 2e-6), (2, 1, 1e-6), (2, 2, 4e-6), (4, 2, 5e-6)),
    ffn=((8, 1e-6), (16, 3e-6), (24, 2e-6)),
)


def nanoseconds(kind: int, heads: int = 0, groups: int = 0, ffn: int = 0) -> int:
    return TABLE.nanoseconds(kind, LayerShape(heads, groups, ffn))


def test_latencies_by_hand() -> None:
    assert nanoseconds("attention") == nanoseconds("ffn") == 0
    assert nanoseconds("attention", 1, 1) == 2000
    # Two heads were measured as faster than one, which they never count as.
    assert nanoseconds("attention", 2, 1) == 2000
    assert nanoseconds("attention", 4, 2) == 5000
    assert nanoseconds("ffn", ffn=4) == 1000
    assert nanoseconds("ffn", ffn=12) == 2000
    assert nanoseconds("ffn", ffn=24) == 3000


def test_sizes_that_were_not_measured() -> None:
    with pytest.raises(UserError, match="no attention of 3 heads and 3 key/value heads"):
        nanoseconds("attention", 3, 3)
    with pytest.raises(UserError, match="no FFN of 32 neurons, only up to 24"):
        nanoseconds("ffn", ffn=32)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --latencies '.*missing\.json': No such file"):
        read_latencies(str(tmp_path / "missing.json"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo': it is not a regular file"):
        read_latencies(str(tmp_path / "fifo"))
    broken = tmp_path / "broken.json"
    broken.write_text('{"device": "x", "tokens": 1, "attention": [[1, 1, -2]], "ffn": [[1, 1]]}')
    with pytest.raises(UserError, match="not a readable table"):
        read_latencies(str(broken))
    broken.with_name("good.json").write_text(TABLE.model_dump_json())
    good = broken.with_name("good.json")
    assert read_latencies(str(good)) == TABLE
    # A file that has been measured again is read again.
    again = TABLE.model_copy(update={"device": "another"})
    good.write_text(again.model_dump_json())
    os.utime(good, ns=(0, 0))
    assert read_latencies(str(good)) == again
