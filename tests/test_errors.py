"""The one exception that users see."""

from lscl.errors import LsclError, unknown_name


def test_an_unknown_name_gets_the_nearest_one_and_the_whole_list():
    error = unknown_name("cnn", "smal", ["small", "tiny"])
    assert isinstance(error, LsclError)
    assert str(error) == "unknown cnn 'smal'; did you mean 'small'? (allowed: small, tiny)"


def test_nothing_is_guessed_when_nothing_is_near():
    assert str(unknown_name("cnn", "xyz", ["small", "tiny"])) == "unknown cnn 'xyz' (allowed: small, tiny)"
