"""What crosses the border between client and server."""

import pytest
import torch

from lscl.errors import LsclError
from lscl.federation.payload import num_bytes, payload_magnitude, seal

SHAPES = {"w": (2, 3), "f": (None, 3), "n": ()}


def good():
    return {"w": torch.ones(2, 3), "f": torch.zeros(5, 3), "n": torch.tensor(7)}


def test_a_good_payload_passes_unchanged():
    sealed = seal(good(), "client 1", SHAPES)
    assert list(sealed) == ["w", "f", "n"] and all(torch.equal(sealed[name], value) for name, value in good().items())
    assert sealed["n"].dtype == torch.int64


def test_a_sealed_payload_shares_no_memory_with_the_sender():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    wide = torch.zeros(3, 5)
    sent = {"w": parameter, "f": wide.T, "n": torch.tensor(1).expand(4)}
    sealed = seal(sent, "server")
    with torch.no_grad():
        parameter.fill_(9)
    wide.fill_(9)
    assert (sealed["w"] == 1).all() and (sealed["f"] == 0).all()
    assert not sealed["w"].requires_grad and all(value.is_contiguous() for value in sealed.values())
    assert {value.data_ptr() for value in sent.values()}.isdisjoint(value.data_ptr() for value in sealed.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": torch.ones(1)}, ["extra missing or not allowed", "allowed: f, n, w"]),
        ({"w": None}, ["w missing or not allowed"]),
        ({"w": torch.ones(3, 2)}, ["w has shape (3, 2), allowed is (2, 3)"]),
        ({"w": torch.ones(2, 3, 1)}, ["w has shape (2, 3, 1), allowed is (2, 3)"]),
        ({"f": torch.ones(5, 4)}, ["f has shape (5, 4), allowed is ('any', 3)"]),
        ({"n": torch.ones(1)}, ["n has shape (1,), allowed is ()"]),
        ({"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, 6.0]])}, ["w holds NaN or infinite numbers"]),
        ({"f": torch.full((1, 3), torch.inf)}, ["f holds NaN or infinite numbers"]),
        ({"f": torch.full((1, 3), -torch.inf, dtype=torch.float16)}, ["f holds NaN or infinite numbers"]),
        ({"n": 7}, ["n is a int, only tensors may travel"]),
        ({"w": [[1.0] * 3] * 2}, ["w is a list, only tensors may travel"]),
    ],
)
def test_a_bad_payload_is_one_line_that_names_sender_and_tensor(change, words, one_line):
    payload = {name: value for name, value in {**good(), **change}.items() if value is not None}
    with pytest.raises(LsclError) as caught:
        seal(payload, "client 3", SHAPES)
    one_line(caught, "payload of client 3: ", *words)


def test_another_type_of_numbers_is_one_line(one_line):
    with pytest.raises(LsclError) as caught:
        seal(good(), "client 3", SHAPES, lambda name: torch.int64 if name == "n" else torch.float64)
    one_line(caught, "payload of client 3: w has type torch.float32, allowed is torch.float64")
    assert set(seal(good(), "client 3", SHAPES, lambda name: torch.int64 if name == "n" else torch.float32)) == set(
        SHAPES
    )


def test_a_payload_over_the_limit_is_one_line(one_line):
    size = num_bytes(good())
    assert seal(good(), "client 3", SHAPES, limit=size)
    with pytest.raises(LsclError) as caught:
        seal(good(), "client 3", SHAPES, limit=size - 1)
    one_line(caught, f"payload of client 3: {size} bytes or more, allowed are {size - 1}")


def test_nothing_but_finite_tensors_leaves_the_server_either(one_line):
    with pytest.raises(LsclError) as caught:
        seal({"w": torch.tensor([torch.nan])}, "server")
    one_line(caught, "payload of server: w holds NaN")


def test_any_length_includes_none_at_all():
    assert seal({**good(), "f": torch.empty(0, 3)}, "client 0", SHAPES)["f"].shape == (0, 3)


def test_an_empty_payload_is_allowed_where_nothing_is_expected(one_line):
    assert seal({}, "client 0", {}) == {}
    with pytest.raises(LsclError) as caught:
        seal({"image": torch.zeros(3, 32, 32)}, "client 0", {})
    one_line(caught, "image missing or not allowed")


def test_bytes_are_numbers_times_their_size():
    payload = {
        "a": torch.zeros(3, 4),
        "b": torch.zeros(5, dtype=torch.float64),
        "c": torch.zeros(7, dtype=torch.bool),
        "d": torch.tensor(1),
    }
    assert num_bytes(payload) == 48 + 40 + 7 + 8
    assert num_bytes({}) == 0


@pytest.mark.parametrize("payload", [None, [], 3, "w"])
def test_something_else_than_tensors_by_name_is_one_line(payload, one_line):
    with pytest.raises(LsclError) as caught:
        seal(payload, "client 3", SHAPES)
    one_line(caught, f"payload of client 3: is a {type(payload).__name__}, not tensors by name")


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 3).to_sparse(),
        torch.empty(2, 3, device="meta"),
        torch.nested.nested_tensor([torch.ones(3)] * 2, layout=torch.jagged),
    ],
)
def test_tensors_without_plain_numbers_are_one_line(value, one_line):
    with pytest.raises(LsclError) as caught:
        seal({**good(), "w": value}, "client 3", SHAPES)
    one_line(caught, "payload of client 3: w is no plain tensor")


@pytest.mark.parametrize("name", [3, None, "\x1b[31m\n" * 1000, ("a", 1)])
def test_any_name_makes_one_short_line(name, one_line):
    with pytest.raises(LsclError) as caught:
        seal({**good(), name: torch.ones(1)}, "client 3", SHAPES)
    one_line(caught, "missing or not allowed")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_checks_see_the_numbers_after_all_else(one_line):
    checks = {"w": lambda value: "is too tall" if value.max() > 5 else None}
    assert seal(good(), "client 3", SHAPES, checks=checks)
    with pytest.raises(LsclError) as caught:
        seal({**good(), "w": torch.full((2, 3), 6.0)}, "client 3", SHAPES, checks=checks)
    one_line(caught, "payload of client 3: w is too tall")


def test_the_largest_of_several_payloads():
    assert payload_magnitude({"a": torch.tensor([-4.0, 1.0]), "n": torch.tensor(9)}, {"b": torch.tensor(2.0)}, {}) == 4
    assert payload_magnitude() == payload_magnitude({"n": torch.tensor(9)}) == 0
