"""The one exception that users see: a single line that says what, where and what is allowed."""

import difflib
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path


class LsclError(Exception):
    """Bad input or a damaged file; the command line prints it as one line and exits with code 2."""


class MissingFile(LsclError):
    """The file does not exist."""


class RejectedPayload(LsclError):
    """A payload that must not cross the border between client and server, as of a training that diverged."""


def make_printable(text: str, most: int | None = None) -> str:
    """Replace unprintable characters of a name (line ends, control characters, bytes that are no text) by escapes.

    Args:
        text: the name.
        most: cut the result to this many characters, the last of them an ellipsis; None = keep all.

    Returns:
        Text that fits into a line of output.
    """
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return plain if most is None or len(plain) <= most else f"{plain[: most - 1]}…"


def value_text(value: object, show: Callable[[object], str] = str) -> str:
    """A value as text; Python refuses that for numbers of thousands of digits.

    Args:
        value: anything.
        show: `str` or `repr`.

    Returns:
        the text, or what the value is.
    """
    try:
        return show(value)
    except ValueError:
        return "(a number too long to print)"


def shorten(text: object, most: int = 500) -> str:
    """One printable line of whatever somebody else wrote, an error included.

    Args:
        text: anything that turns into text; only its beginning is read.
        most: most characters of the line.

    Returns:
        The text with single blanks in place of line ends and runs of blanks.
    """
    return make_printable(" ".join(value_text(text)[: 4 * most].split()), most)


def pluralize(count: int, thing: str) -> str:
    """Say how many there are.

    Args:
        count: the number.
        thing: the singular, whose plural ends in s.

    Returns:
        For example "1 file" or "2 files".
    """
    return f"{count} {thing}{'' if count == 1 else 's'}"


def unknown_name(kind: str, value: object, allowed: Iterable[object]) -> LsclError:
    """Make the error for an unknown name.

    Args:
        kind: what the name should be of, such as "data set".
        value: the unknown name.
        allowed: the valid names.

    Returns:
        The error, with the nearest valid name and the whole list.
    """
    names, text = [str(name) for name in allowed], value_text(value)[:100]
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
# Failures of values that are each allowed: exceptions, words that other libraries use, what it is, what helps.
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
    """Explain a failure that values cause that are too large, too small or too odd.

    Returns None for any other failure: that is a bug, and it keeps its traceback.
    """
    kinds, text = {kind.__name__ for kind in type(error).__mro__}, " ".join(str(error).split())
    for names, words, what, helps in CAUSES:
        if kinds & names or (kinds & {"RuntimeError", "ValueError"} and any(word in text.lower() for word in words)):
            where = f"{type(error).__name__} in {_place(error)}: {text[:200]}"
            return LsclError(f"{what}: {helps}; what was saved before is kept ({where})")
    return None


def _place(error: Exception) -> str:
    """File and line of this package where the failure arose."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "lscl" in Path(frame.filename).parts]
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "another package"


def first_line(error: BaseException) -> str:
    """The first line that an exception of another library says, or its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def list_words(names: list[str], word: str) -> str:
    """Names with commas, and a word such as "or" before the last.

    Args:
        names: at least one.
        word: the word.

    Returns:
        text.
    """
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
