"""What devices send each other: the collectives of a compiled program, read from its text.

The text lists one computation after another. Loops, branches and fusions name the computations that they run.
"""

import math
import re

COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(.*?"
    r"(?:channel_id=(\d+)|$)",
    re.MULTILINE,
)
ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
"""A type in a compiled program, such as bf16[4096,128]."""
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CONSTANT = re.compile(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
BELOW = re.compile(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
CALLED = re.compile(
    r"(?:calls|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?"
)


def array_bytes(text: str) -> dict[str, int]:
    """Bytes of every array type that a piece of a compiled program names."""
    return {
        f"{kind}{bits}[{shape}]": math.prod(map(int, filter(None, shape.split(",")))) * int(bits or 8) // 8
        for kind, bits, shape in ARRAY.findall(text)
    }


def largest_collective(program: str) -> tuple[int, str]:
    """(bytes, description) of the largest array that a device receives from the collectives of a compiled
    program."""
    found = [
        (size, f"{what} {array}")
        for result, what, _ in COLLECTIVE.findall(program)
        for array, size in array_bytes(result).items()
    ]
    return max(found, default=(0, "none"))


def received_bytes(program: str, loops: tuple[int, ...] = ()) -> dict[str, float]:
    """Bytes that a device receives from the collectives of a compiled program, by their kind.

    `loops` are the trip counts, in program order, of the loops whose trip count depends on data.

    Raises:
        ValueError: there are more such loops than `loops` has.
    """
    entry, computations = _computations(program)
    data = iter(loops)
    channels: dict[tuple[str, str], float] = {}

    def visit(name: str, times: int) -> None:
        for line in computations[name]:
            if found := COLLECTIVE.search(line):
                # A collective that runs in the background has several parts, on one channel.
                channel = found[2], found[3] or f"{name}: {line}"
                size = times * max(array_bytes(found[1]).values(), default=0)
                channels[channel] = max(channels.get(channel, 0), size)
            if loop := WHILE.search(line):
                trips = _trips(line, computations[loop[1]])
                trips = next(data, None) if trips is None else trips
                if trips is None:
                    raise ValueError(
                        "the program has more loops with data-dependent trip counts than `loops` has counts"
                    )
                visit(loop[2], times * trips)
            elif called := CALLED.search(line):
                for each in re.findall(r"[\w.\-]+", called[1]):
                    if each in computations:
                        visit(each, times)

    visit(entry, 1)
    received: dict[str, float] = {}
    for (kind, _), size in channels.items():
        received[kind] = received.get(kind, 0) + size
    return received


def _computations(program: str) -> tuple[str, dict[str, list[str]]]:
    """(name of the entry computation of a compiled program, lines of each computation by name)."""
    entry = name = ""
    computations: dict[str, list[str]] = {}
    for line in program.splitlines():
        if begun := COMPUTATION.match(line):
            name = begun[1]
            entry = name if line.startswith("ENTRY") else entry
            computations[name] = []
        elif name:
            computations[name].append(line)
    return entry, computations


def _trips(loop: str, condition: list[str]) -> int | None:
    """Trip count of a `loop` that continues under a `condition`, or `None` if it depends on data."""
    if said := TRIPS.search(loop):
        return int(said[1])
    constants = {found[1]: int(found[2]) for line in condition if (found := CONSTANT.search(line))}
    below = next((found[1] for line in condition if (found := BELOW.search(line))), "")
    return constants.get(below)
