"""Bytes that devices send each other, from the text of a compiled program."""

import collectives
import pytest

PROGRAM = """
%body.1 (x: f32[8]) -> f32[8] {
  %all-gather.2 = bf16[4,8]{1,0} all-gather(%x), channel_id=2, dimensions={0}
  ROOT %fusion.1 = f32[8]{0} fusion(%all-gather.2), kind=kLoop, calls=%inner.1
}

%inner.1 (y: bf16[4,8]) -> f32[8] {
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%y), channel_id=3, to_apply=%sum.1
}

%start.1 (x: f32[8]) -> f32[64] {
  ROOT %all-gather.7 = f32[64]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%other.1 (x: f32[8]) -> f32[8] {
  %all-to-all.1 = f32[8]{0} all-to-all(%x), dimensions={0}
  ROOT %u = f32[8]{0} while(%all-to-all.1), condition=%c.3, body=%third.1
}

%third.1 (x: f32[8]) -> f32[8] {
  ROOT %all-to-all.2 = f32[8]{0} all-to-all(%x), dimensions={0}
}

%c.1 (x: f32[8]) -> pred[] {
  ROOT %less.1 = pred[] fusion(%x), kind=kLoop, calls=%sum.1
}

%c.2 (x: f32[8]) -> pred[] {
  %limit = s32[] fusion(%x), kind=kLoop, calls=%sum.1
  ROOT %lt.1 = pred[] compare(%count, %limit), direction=LT
}

%c.3 (x: f32[8]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(6)
  ROOT %lt.2 = pred[]{:T(512)} compare(%count, %constant.1), direction=LT
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %a = f32[64]{0} fusion(%x), kind=kLoop, calls=%start.1
  %all-gather.8 = f32[64]{0} all-gather(%x), channel_id=5, dimensions={0}
  %w = f32[8]{0} while(%x), condition=%c.1, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
  %v = f32[8]{0} while(%w), condition=%c.2, body=%other.1
  ROOT %z = f32[8]{0} while(%v), condition=%c.2, body=%last.1
}

%last.1 (x: f32[8]) -> f32[8] {
  ROOT %all-to-all.3 = f32[16]{0} all-to-all(%x), dimensions={0}
}
"""


def test_collectives_count_as_often_as_they_run() -> None:
    # 64 and 32 bytes, ten times each. One gather in two parts. Two loops whose trip counts depend on data.
    # The first of them contains a loop that runs six times, by its condition.
    expected = {
        "all-gather": 10 * 64 + 256,
        "all-reduce": 10 * 32,
        "all-to-all": 7 * (32 + 6 * 32) + 3 * 64,
    }
    assert collectives.received_bytes(PROGRAM, (7, 3)) == expected


def test_every_loop_of_which_only_the_data_knows_is_to_be_told_of() -> None:
    with pytest.raises(ValueError, match="more loops"):
        collectives.received_bytes(PROGRAM, (7,))
