"""A few attacked clients, played once for all tests of this folder."""

import copy
from functools import cache

import pytest

from lscl.config import experiment
from lscl.experiments.privacy.observed import Witness, observe
from lscl.experiments.run import prepare
from lscl.federation.loop import federate

CANDIDATES = 24


@cache
def _played(name, changes):
    config = experiment(method=name, profile="smoke", stop_after=1, **dict(changes))
    _, _, method, clients = prepare(config)
    witness = Witness(method, clients)
    reports = list(federate(method, witness))
    return method, clients, witness.last, reports


@pytest.fixture
def played():
    """played(method, **values): the system, its clients, the last training exchange and the reports of a smoke run."""

    def make(name="fed_lscl", **changes):
        method, clients, last, reports = _played(name, tuple(sorted(changes.items())))
        return copy.copy(method), clients, last, reports

    return make


@pytest.fixture
def attacked(played):
    """attacked(method, **values): client 0 of a smoke run as the server sees it."""

    def make(name="fed_lscl", **changes):
        method, clients, last, _ = played(name, **changes)
        return observe(method, clients, last, 0, CANDIDATES)

    return make
