"""The one exception that users see: a single line that says what, where and what is allowed."""

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class LsclError(Exception):
    """Bad input or a damaged file; the command line prints it as one line and exits with code 2."""


class MissingFile(LsclError):
    """There is no such file."""


def make_printable(text: str, most: int | None = None) -> str:
    """A name as it may stand in a line of output: what is not printable (line ends, control characters, bytes that are no text) as an
    escape such as \\n, and cut behind `most` characters."""
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return plain if most is None or len(plain) <= most else f"{plain[: most - 1]}…"


def pluralize(count: int, thing: str) -> str:
    """A number and what is counted: "1 file", "2 files"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def unknown_name(kind: str, value: object, allowed: Iterable[object]) -> LsclError:
    """An error for an unknown name, with the nearest valid one and the whole list of what is allowed."""
    names, text = [str(name) for name in allowed], str(value)[:100]
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return LsclError(f"unknown {kind} {text!r}{hint} (allowed: {', '.join(names)})")


_LOWER = (
    "lower batch, clients, images_per_class, image_size, buffer_per_class, features or rank, or what the method makes "
    "(target_batch, mfcl_batch, l2p_pool, lorm_rank, ...), or take a smaller foundation model"
)
_NEARER = "bring learning rates, weights of losses, temperatures and sizes nearer to their defaults"
_TOO_LARGE = (
    "overflowed with sizes",
    "integer multiplication overflow",
    "array is too big",
    "maximum allowed dimension",
)
# What comes of values that are allowed one by one: exceptions, words that others say for the same, what it is, what helps.
CAUSES: list[tuple[set[str], tuple[str, ...], str, str]] = [
    (
        {"MemoryError", "OutOfMemoryError"},
        ("allocate memory", "out of memory", "not enough memory"),
        "out of memory",
        _LOWER,
    ),
    (set(), _TOO_LARGE, "an array too large", _LOWER),
    (
        {"LinAlgError", "_LinAlgError"},
        (),
        "a matrix that cannot be inverted",
        "raise o2d_lambda, lower lorm_alpha or the learning rates",
    ),
    ({"ArithmeticError"}, (), "a number too large or too small to compute with", _NEARER),
    ({"RecursionError"}, (), "something nested too deeply", "look for a damaged file among the results"),
    (set(), ("embedded null",), "a path or name with a NUL byte", "take it away"),
]


def explain(error: Exception) -> LsclError | None:
    """One line for a failure that comes of values too large, too small or too odd, with the parameters that help; None for anything else,
    which is a bug and keeps its traceback."""
    kinds, text = {kind.__name__ for kind in type(error).__mro__}, " ".join(str(error).split())
    for names, words, what, helps in CAUSES:
        if kinds & names or (kinds & {"RuntimeError", "ValueError"} and any(word in text.lower() for word in words)):
            return LsclError(
                f"{what}: {helps}; what was saved before is kept ({type(error).__name__} in {_place(error)}: {text[:200]})"
            )
    return None


def _place(error: Exception) -> str:
    """File and line where the package came to it."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "lscl" in Path(frame.filename).parts]
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "another package"


def first_line(error: BaseException) -> str:
    """What an exception of another library says, as far as it fits into one line; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
