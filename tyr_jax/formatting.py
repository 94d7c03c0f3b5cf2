"""Numbers and names in words, for people."""

import math
import unicodedata


def in_words(count: float) -> str:
    """A number of bytes, such as `1.4 GB`."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on; below ten seconds with a decimal, `3.2 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: str) -> str:
    """Text on one line, with all that a terminal would obey, and not show, as escapes such as `\\x1b`."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def shown(text: str) -> str:
    """`printable` text of several lines: line breaks and tabs stay, and what joins letters."""
    return "".join(_escaped(each) if _obeyed(each) else each for each in text)


def _obeyed(letter: str) -> bool:
    """Whether a terminal does something else with it than to show it."""
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
