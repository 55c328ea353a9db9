"""The one exception that users see: a single line that says what, where and what is allowed."""

import difflib
from collections.abc import Iterable


class LsclError(Exception):
    """Bad input or a damaged file; the command line prints it as one line and exits with code 2."""


def shown(text: str, most: int | None = None) -> str:
    """A name as it may stand in a line of output: what is not printable (line ends, control characters, bytes that are no text) as an
    escape such as \\n, and cut behind `most` characters."""
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return plain if most is None or len(plain) <= most else f"{plain[: most - 1]}…"


def counted(count: int, thing: str) -> str:
    """A number and what is counted: "1 file", "2 files"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def unknown(kind: str, value: object, allowed: Iterable[object]) -> LsclError:
    """An error for an unknown name, with the nearest valid one and the whole list of what is allowed."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return LsclError(f"unknown {kind} {str(value)!r}{hint} (allowed: {', '.join(names)})")
