"""One client cannot break the others: whatever it answers, the server goes on, and their payloads hardly change."""

import math
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_root import Recorder

from lscl.errors import LsclError
from lscl.experiments.run import run as run_of
from lscl.experiments.run import state_folders
from lscl.federation.limits import LIMIT, STEP, largest_magnitude
from lscl.federation.loop import InProcess, exchanges, federate
from lscl.federation.method import IMAGES, Stage
from lscl.federation.payload import is_finite
from lscl.methods import METHODS
from lscl.methods.parts.o2d import pack_triangle

ATTACKER, OTHERS = 1, (0, 2)
GRAM = {"method": "fed_lscl", "o2d_upload": "gram"}
SYSTEMS = {
    **{name: {"method": name} for name in METHODS},
    "fed_lscl, gram": GRAM,
    "fed_lscl, sgd": {"method": "fed_lscl", "o2d": "sgd"},
}
SYSTEMS |= {f"{name}, holders": {"method": name, "head_merge": "holders"} for name in ("fedavg", "lorm", "pilora")}
MERGED = ("lorm", "fed_lscl")  # by regression: no number of the result lies between those that went in


@dataclass
class Answers:
    """A transport without clients: recorded answers, one client's changed.

    change(stage, its answers so far, all answers) -> its answer.
    """

    recorded: dict
    change: object = None

    def ask(self, stage, downloads):
        answers = {k: dict(payload) for k, payload in self.recorded[stage].items()}
        if self.change is not None:
            answers[ATTACKER] = self.change(stage, answers)
        return answers


class Recorded:
    """An honest run: the answers of every exchange, and the server in front of every round."""

    def __init__(self, method, clients):
        transport, self.method, self.servers, self.rounds = Recorder(method, clients), method, [dict(method.server)], []
        for report in federate(method, transport):
            self.servers.append(dict(method.server))
            self.rounds.append(report)
        self.answers = {stage: uploads for stage, _, uploads in transport.log}
        self.stages = list(self.answers)

    def round_of(self, stage):
        trained = [one for one in self.stages if one.name != "finish"]
        return max(
            n for n, one in enumerate(trained) if one == stage or (stage.name == "finish" and one.task == stage.task)
        )

    def again(self, stage, change):
        """Repeat the round of an exchange with another answer of one client; -> the report and the server after it."""
        number = self.round_of(stage)
        self.method.server = dict(self.servers[number])
        transport = Answers(self.answers, lambda at, answers: change(answers) if at == stage else answers[ATTACKER])
        return next(federate(self.method, transport, number, least=2)), self.method.server


@pytest.fixture(scope="module")
def honest():
    """The honest runs so far, by their values."""
    return {}


@pytest.fixture
def recorded(honest, federation, smoke):
    """recorded(**values): an honest run, the test's own to change."""

    def make(**values):
        key = tuple(sorted(values.items()))
        if key not in honest:
            honest[key] = Recorded(*federation(smoke(**values)))
        return deepcopy(honest[key])

    return make


def absent(answers):
    return LsclError(f"client {ATTACKER}: no answer")


def same(one, other):
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


# ---- what was tried, one by one


def put(**changes):
    """A change that puts one number everywhere in the tensors whose names end so; `__` stands for a dot."""

    def change(answers):
        payload = dict(answers[ATTACKER])
        for end, number in changes.items():
            names = [name for name in payload if name.endswith(end.replace("__", "."))]
            payload |= {name: torch.full_like(payload[name], number) for name in names}
            assert names
        return payload

    return change


def floats(number):
    return lambda answers: {
        n: torch.full_like(v, number) if v.is_floating_point() else v for n, v in answers[ATTACKER].items()
    }


def less_than_the_others(answers):
    return {**answers[ATTACKER], IMAGES: -sum(answers[k][IMAGES] for k in OTHERS)}


def not_positive(answers):
    """Squares as they are, products far too large."""
    moments = torch.full((17, 17), 5.0, dtype=torch.float64).fill_diagonal_(1.0)
    return {**answers[ATTACKER], "gram": pack_triangle(moments)}


def other_flags(answers):
    return {**answers[ATTACKER], "holds": answers[OTHERS[0]]["holds"]}


def better_among_more(answers):
    correct = torch.zeros_like(answers[ATTACKER]["correct"])
    correct[2] = 1
    return {**answers[ATTACKER], "correct": correct}


FIRST, LATER, LAST = Stage(0, 0), Stage(1, 1), Stage(1, 1, "finish")
TRIED = [
    ("fedavg_vit", FIRST, floats(3e38), "is 3e+38 away from what was sent, training reaches"),
    ("fedavg_vit", LATER, floats(1e20), "is 1e+20 away from what was sent"),
    ("fed_lscl", LATER, floats(-3e38), "away from what was sent"),
    ("fedmgp", FIRST, floats(3e38), "away from what was sent"),
    ("pilora", LATER, put(means=3e38), "means holds 3e+38, allowed are -1e+06 to 1e+06"),
    ("fed_lscl", FIRST, put(features=1e20), "features holds 1e+20, allowed are"),
    ("fedavg", FIRST, put(running_var=-1000.0), "running_var holds -1000, allowed are 0 to 1e+12"),
    ("fedavg", LATER, put(running_mean=-1e7), "running_mean holds -1e+07"),
    ("fedavg", LATER, put(num_batches_tracked=2**63 - 1), "num_batches_tracked holds 9.22337e+18, allowed are"),
    ("fedavg", LATER, put(num_batches_tracked=0), "num_batches_tracked holds 0, allowed are"),
    ("fedavg_vit", FIRST, put(images=2**62), "images is 4611686018427387904, the server knows"),
    ("fedavg_vit", FIRST, put(images=0), "images is 0, the server knows"),
    ("lorm", FIRST, put(images=-7), "images is -7, the server knows"),
    ("pilora", FIRST, less_than_the_others, "images is -"),
    ("pilora", FIRST, put(classes=10**6), "classes is 1000000, 1000000, 1000000, the server knows"),
    ("pilora", LATER, put(classes=-1), "classes is -1, -1, -1, the server knows"),
    ("glfc", Stage(1, 0), other_flags, "holds is "),
    ("glfc", Stage(1, 0), put(gradients=1e30), "gradients holds 1e+30"),
    ("gram", LATER, put(gram=-1.0), "gram has squares of -1 to -1, allowed are 0 to 1e+12"),
    ("gram", LATER, not_positive, "gram is no Gram matrix: it has an eigenvalue below zero"),
    ("lorm", FIRST, put(gram__head=-1.0), "gram.head has squares of -1 to -1"),
    ("lorm", Stage(0, 2, "gram"), put(**{"gram__0__qkv": -1.0}), "gram.0.qkv holds -1, allowed are 0 to"),
    ("fed_ncm", FIRST, put(counts=7), "counts is 7, 7, 7, the server knows"),
    ("fed_ncm", Stage(1, 0), put(sums=1e5), "sums has a sum of length"),
    ("fed_ridge", FIRST, put(gram=1.0), "gram has other numbers of images than the"),
    ("fed_ridge", Stage(1, 0), put(gram=0.0), "gram has other numbers of images than the"),
    ("fed_lscl", LAST, put(ridge=1000), "ridge holds 1000 to 1000 right answers, allowed are 0 to 2, 2, 2, 2, 2, 2"),
    (
        "local_head",
        LAST,
        put(correct=1000),
        "correct holds 1000 to 1000 right answers, allowed are 0 to 2, 2, 2, 2, 2, 2",
    ),
    ("local_head", LAST, put(correct=-1), "correct holds -1 to -1 right answers"),
    ("local_head", LAST, better_among_more, "correct is larger where more classes compete"),
    ("local_head", LAST, put(total=0), "total is 0, 0, 0, 0, 0, 0, the server knows 2, 2, 2, 2, 2, 2"),
    ("local_head", LAST, put(total=-2), "total is -2, -2"),
    ("local_head", LAST, put(total=10**9, correct=10**9), "right answers, allowed are|total is 1000000000"),
]


@pytest.mark.parametrize(
    ("name", "stage", "change", "words"), TRIED, ids=[f"{name}-{words[:40]}" for name, _, _, words in TRIED]
)
def test_what_was_tried_is_left_out_named_and_counted(recorded, name, stage, change, words):
    """And server and scores are to the bit what they are if that client does not answer."""
    run = recorded(**(GRAM if name == "gram" else {"method": name}))
    report, server = run.again(stage, change)
    (fault,) = report.faults
    assert fault.startswith(f"payload of client {ATTACKER}: ") and any(some in fault for some in words.split("|"))
    without, server_without = run.again(stage, absent)
    assert same(server, server_without)
    assert set(report.scores) == set(without.scores) and all(
        same(report.scores[k], without.scores[k]) for k in report.scores
    )


def test_nobody_with_images_is_one_line_and_the_server_stays(recorded, one_line):
    run = recorded(method="fedavg_vit")
    run.answers[LATER] = {k: {**payload, IMAGES: torch.tensor(0)} for k, payload in run.answers[LATER].items()}
    with pytest.raises(LsclError) as caught:
        run.again(LATER, lambda answers: answers[ATTACKER])
    one_line(
        caught,
        "task 2 round 2 (train): 0 good answers, at least 2 are needed: "
        "payload of client 0: images is 0, the server knows",
    )
    assert same(run.method.server, run.servers[run.round_of(LATER)])


# ---- the aggregation itself fails


def failing(run, monkeypatch, culprits, how):
    """Let the aggregation fail in its own way as soon as one of the culprits takes part."""
    honest = type(run.method).aggregate

    def aggregate(method, uploads, stage):
        honest(method, uploads, stage)
        if culprits & set(uploads):
            how(method)

    monkeypatch.setattr(type(run.method), "aggregate", aggregate)


def raises(method):
    raise torch.linalg.LinAlgError("the factorization could not be completed")


def spoils(number):
    def how(method):
        method.server["out.bias"] = torch.full_like(method.server["out.bias"], number)

    return how


FAILURES = {
    "LinAlgError": (raises, "factorization"),
    "NaN": (spoils(math.nan), "out.bias (held) holds NaN"),
    "far": (spoils(1e9), "numbers of 1e+09"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_one_whose_answer_makes_the_aggregation_fail_is_left_out(recorded, monkeypatch, case):
    run, (how, words) = recorded(method="fedavg_vit"), FAILURES[case]
    without, server = run.again(LATER, absent)
    failing(run, monkeypatch, {ATTACKER}, how)
    report, found = run.again(LATER, lambda answers: answers[ATTACKER])
    assert same(found, server) and report.bytes_up == without.bytes_up
    (fault,) = report.faults
    assert fault.startswith(f"client {ATTACKER}: its answer makes the aggregation fail (") and words in fault


@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_with_anybody_leaves_the_server_as_it_was(recorded, monkeypatch, case):
    run, (how, words) = recorded(method="fedavg_vit"), FAILURES[case]
    failing(run, monkeypatch, {0, 1, 2}, how)
    report, server = run.again(LATER, lambda answers: answers[ATTACKER])
    assert same(server, run.servers[run.round_of(LATER)])
    (fault,) = report.faults
    assert (
        fault.startswith("server: task 2 round 2 (train): the aggregation fails (")
        and words in fault
        and "kept" in fault
    )


@pytest.mark.parametrize("case", FAILURES)
def test_in_one_process_a_failing_aggregation_stops_the_run_and_the_server_stays(federation, smoke, monkeypatch, case):
    method, clients = federation(smoke(method="fedavg_vit"))
    how, words = FAILURES[case]
    before = dict(method.server)
    monkeypatch.setattr(type(method), "aggregate", lambda method, uploads, stage: how(method))
    with pytest.raises(
        torch.linalg.LinAlgError if case == "LinAlgError" else LsclError, match=words.split(" (")[0].replace("+", ".")
    ):
        next(federate(method, InProcess(method, clients)))
    assert same(method.server, before)


def test_a_bad_state_is_never_saved(smoke, monkeypatch, places, one_line):
    """The run goes on behind the last good round, and ends as if nothing had been."""
    config = smoke(method="fedavg_vit")
    whole = run_of(config, quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(places / "again"))
    honest = METHODS["fedavg_vit"].aggregate

    def aggregate(method, uploads, stage):
        honest(method, uploads, stage)
        if stage == LATER:
            method.server["out.bias"] = method.server["out.bias"] * math.nan

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["fedavg_vit"], "aggregate", aggregate)
        with pytest.raises(LsclError) as caught:
            run_of(config, quiet=True)
    one_line(caught, "payload of server: out.bias (held) holds NaN")
    (folder,) = state_folders()
    assert [path.name for path in folder.glob("round-*")] == ["round-00003"]
    assert run_of(config, quiet=True)["accuracy"] == whole["accuracy"]


def test_a_task_that_cannot_be_ended_leaves_the_server_as_it_was(recorded, monkeypatch):
    run, finish = recorded(method="mfcl"), Stage(0, 1, "finish")
    aggregated = {name: value for name, value in run.servers[2].items() if not name.startswith("generator.")}
    monkeypatch.setattr("lscl.methods.mfcl.roughness", lambda images: images.sum() * math.nan)
    report, server = run.again(finish, lambda answers: answers[ATTACKER])
    why = "payload of server: generator.first.weight (held) holds NaN or infinite numbers"
    assert report.faults == [f"server: the end of task 1 fails ({why}), what was there before is kept"]
    assert same({name: value for name, value in server.items() if name in aggregated}, aggregated)
    assert all(
        torch.equal(server[name], value) for name, value in run.servers[0].items() if name.startswith("generator.")
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_aggregation_never_writes_into_what_the_server_held(recorded, name):
    """So the loop can go back to it without a copy."""
    run = recorded(**SYSTEMS[name])
    fresh = [{key: value.clone() for key, value in server.items()} for server in run.servers]
    for number, stage in enumerate(stage for stage in run.stages if stage.name != "finish"):
        run.again(stage, lambda answers: answers[ATTACKER])
        assert same(run.servers[number], fresh[number])
        assert same(run.method.server, run.servers[number + 1])


# ---- any answer at all

EXTREME = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    -1e-40,
    1e-7,
    1e4,
    -1e4,
    1e6,
    1e20,
    -1e20,
    3e38,
    -3e38,
    math.inf,
    -math.inf,
    math.nan,
]
NUMBERS = st.one_of(st.sampled_from(EXTREME), st.floats(width=32))
WHOLE = st.one_of(st.sampled_from([0, 1, -1, 2**31, 2**62, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1))
TYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
OBJECTS = [None, 3, "x", [1.0], {}, b"", torch.eye(3).to_sparse(), torch.empty(2, device="meta")]


def like(value, number, whole):
    """A number of the tensor's own type."""
    number = bool(whole) if value.dtype == torch.bool else number if value.is_floating_point() else whole
    return torch.tensor(number).to(value.dtype)


def one_number(value, number, whole):
    changed = value.clone()
    changed.view(-1)[: max(1, value.numel() // 7)] = like(value, number, whole)
    return changed


CHANGES = {
    "fill": lambda value, number, whole: torch.full_like(value, like(value, number, whole).item()),
    "some": one_number,
    "scale": lambda value, number, whole: value * number if value.is_floating_point() else value * (whole % 2**31),
    "shift": lambda value, number, whole: value + like(value, number, whole) if value.dtype != torch.bool else ~value,
    "edge": lambda value, number, whole: value + 1e-3 * (-1) ** (whole % 2) if value.is_floating_point() else value,
    "turn": lambda value, number, whole: (
        value.flip(0) if value.ndim else -value if value.dtype != torch.bool else value
    ),
    "type": lambda value, number, whole: value.to(TYPES[whole % len(TYPES)]),
    "flat": lambda value, number, whole: value.reshape(-1, 1),
    "short": lambda value, number, whole: value[:0] if value.ndim else value[None],
    "long": lambda value, number, whole: torch.cat([value, value]) if value.ndim else value.expand(2),
    "object": lambda value, number, whole: OBJECTS[whole % len(OBJECTS)],
}
STEPS = st.tuples(st.sampled_from([*CHANGES, "all", "drop", "add", "swap"]), st.integers(0, 200), NUMBERS, WHOLE)


def attack(answers, earlier, steps, whole_answer):
    """An honest answer after some changes; or something else altogether."""
    if whole_answer is not None:
        return [None, [], 7, {}, answers[OTHERS[0]], earlier, {3: torch.ones(2)}, {"\n" * 9: torch.ones(2)}][
            whole_answer
        ]
    payload = dict(answers[ATTACKER])
    for kind, which, number, whole in steps:
        names = sorted(name for name, value in payload.items() if isinstance(value, torch.Tensor))
        if not names or kind == "add":
            payload[f"extra{which}"] = torch.tensor(number)
            continue
        name, other = names[which % len(names)], names[which // 2 % len(names)]
        if kind == "drop":
            payload.pop(name)
        elif kind == "swap":
            payload[name], payload[other] = payload[other], payload[name]
        elif kind == "all":
            payload |= {one: torch.full_like(payload[one], like(payload[one], number, whole).item()) for one in names}
        elif payload[name].layout == torch.strided and not payload[name].is_meta:
            payload[name] = CHANGES[kind](payload[name], number, whole)
    return payload


ATTACKS = st.tuples(
    st.integers(0, 200), st.lists(STEPS, min_size=1, max_size=4), st.one_of(st.none(), st.none(), st.integers(0, 7))
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_answer_makes_the_server_raise_or_moves_the_others_far(recorded, name):
    run = recorded(**SYSTEMS[name])
    gone = {}

    @settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @given(ATTACKS)
    def holds(drawn):
        place, steps, whole_answer = drawn
        stage = run.stages[place % len(run.stages)]
        number = run.round_of(stage)
        if stage not in gone:
            gone[stage] = run.again(stage, absent)
        earlier = run.answers[run.stages[place % len(run.stages) - 1]][ATTACKER]
        report, server = run.again(stage, lambda answers: attack(answers, earlier, steps, whole_answer))
        assert all(is_finite(value) for value in server.values())
        for k in OTHERS:
            assert report.bytes_up[k] == run.rounds[number].bytes_up[k]
            assert same(report.scores.get(k, {}), run.rounds[number].scores.get(k, {}))
        if report.faults:
            assert len(report.faults) == 1 and f"client {ATTACKER}" in report.faults[0] and "\n" not in report.faults[0]
            assert same(server, gone[stage][1])
        else:
            assert_near(run, number, server)

    holds()


def assert_near(run, number, server):
    """No trained number is further from the honest round's than two clients can be; what was measured has its limit."""
    method, honest, task = run.method, run.servers[number + 1], run.rounds[number].task
    for name, value in server.items():
        if not value.is_floating_point() or name.startswith(("gram", "generator", "best", "score", "old")):
            continue
        if not method.trains:  # sums over images, and what is solved from them
            own = method.census.images_so_far(ATTACKER, task)
            assert largest_magnitude(value - honest[name]) <= 2.01 * own * method.longest, name
            continue
        if "running" in name:
            assert largest_magnitude(value) <= LIMIT**2
            continue
        rate = max(
            method.config.lr,
            method.config.lr_generator,
            method.config.mgp_surrogate_lr,
        )
        distance = 2 * STEP * rate * max(method.steps(k, task) for k in range(3))
        times = 20 if method.config.method in MERGED else 1
        assert largest_magnitude(value - honest[name]) <= times * distance, name


# ---- the most that is allowed


class Worst(InProcess):
    """One client answers every exchange with the most that its checks let pass; `side`: value -> signs of -1 and 1."""

    side = staticmethod(torch.ones_like)

    def ask(self, stage, downloads):
        start = {} if stage.name == "finish" else self.method.training_start(ATTACKER, stage)
        start = {name: value.clone() for name, value in start.items()}
        answers = super().ask(stage, downloads)
        payload = answers[ATTACKER]
        for name, value in payload.items():
            payload[name] = self.worst(name, value.detach(), start.get(name))
        return answers

    def worst(self, name, value, start):
        if not value.is_floating_point():
            return value
        sign = self.side(value)
        if name.startswith("gram"):  # sums of squares, packed or diagonals
            return value * 1e6 if sign.sum() > 0 else value * 0
        if name.endswith("running_var"):
            return torch.where(sign > 0, LIMIT**2, 0.0)
        if start is None or name.endswith("running_mean"):
            return sign * LIMIT
        reach = self.method.steps(ATTACKER, self.clients[ATTACKER].task) * STEP * self.method.rate(name)
        return start + 0.99 * reach * sign


SIDES = {
    "up": torch.ones_like,
    "down": lambda value: -torch.ones_like(value),
    "both": lambda value: torch.ones_like(value).index_fill_(0, torch.arange(0, len(value), 2), -1),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_with_the_most_that_is_allowed_nobody_else_is_blamed_and_the_run_ends(federation, smoke, name, side):
    method, clients = federation(smoke(**SYSTEMS[name]))
    transport = Worst(method, clients)
    transport.side = SIDES[side]
    reports = list(federate(method, transport, least=2))
    assert all(f"client {ATTACKER}" in fault for report in reports for fault in report.faults)
    assert len(reports) == len(exchanges(method)) - 2 and all(
        set(OTHERS) <= set(report.scores) for report in reports if report.scores
    )
    assert all(is_finite(value) for k in OTHERS for value in clients[k].private_state().values())
