"""Numbers and text in a form for people to read."""

import math
import unicodedata


def in_words(count: float) -> str:
    """A number of bytes, such as `1.4 GB`."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """A duration as `m:ss`, as `h:mm:ss` from one hour up, or as `3.2 s` below ten seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str) -> str:
    """Text on one line. Characters that cannot be printed become escapes such as `\\x1b`."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Format characters that show other text in another order than it has."""


def shown(text: str) -> str:
    """Like `printable`, but line breaks, tabs and invisible format characters (such as joiners) stay."""
    return "".join(_escaped(each) if _obeyed(each) else each for each in text)


def _obeyed(letter: str) -> bool:
    """Whether a terminal or a browser would obey the character instead of showing it."""
    return letter in REORDERING or (letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs"))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
