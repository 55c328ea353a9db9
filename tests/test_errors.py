"""The one exception that users see."""

from lscl.errors import LsclError, first_line, make_printable, shorten, unknown_name


def test_an_unknown_name_gets_the_nearest_one_and_the_whole_list():
    error = unknown_name("cnn", "smal", ["small", "tiny"])
    assert isinstance(error, LsclError)
    assert str(error) == "unknown cnn 'smal'; did you mean 'small'? (allowed: small, tiny)"


def test_nothing_is_guessed_when_nothing_is_near():
    assert str(unknown_name("cnn", "xyz", ["small", "tiny"])) == "unknown cnn 'xyz' (allowed: small, tiny)"


def test_whatever_others_write_becomes_one_short_printable_line():
    assert shorten(" a\n\tb  c\x1b ") == "a b c\\x1b"
    assert shorten("x" * 501) == "x" * 499 + "…" and shorten("x" * 500) == "x" * 500
    assert shorten(ValueError("a\nb"), 2) == "a…"
    assert make_printable("a\nb") == "a\\nb"


def test_the_first_line_of_an_exception_or_its_type():
    assert first_line(ValueError("\n  one \ntwo")) == "one" and first_line(ValueError()) == "ValueError"
