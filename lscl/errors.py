"""The one exception that users see: a single line that says what, where and what is allowed."""

import difflib
from collections.abc import Iterable


class LsclError(Exception):
    """Bad input or a damaged file; the command line prints it as one line and exits with code 2."""


def unknown(kind: str, value: object, allowed: Iterable[object]) -> LsclError:
    """An error for an unknown name, with the nearest valid one and the whole list of what is allowed."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return LsclError(f"unknown {kind} {str(value)!r}{hint} (allowed: {', '.join(names)})")


def first_line(error: BaseException) -> str:
    """What an exception of another library says, as far as it fits into one line; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
