"""Which options a system reads: those of others may be refused, for they change nothing."""

import pytest

from lscl.config import Experiment, fields, readers
from lscl.experiments.run import run
from lscl.registry import METHODS

VARIANTS = {
    "fed_lscl": [
        {"continual": "ewc"},
        {"continual": "lwf"},
        {"continual": "replay"},
        {"o2d": "sgd"},
        {"o2d": "average"},
        {"auxiliary": 1.0},
    ],
    "fedmgp": [{"head": "mlp"}],
}
# Read by code that all systems share, without effect on those that `readers` does not name: cnn_size is that of images
# that a system without a CNN never asks for.
SHARED = {"cnn_size": 20, "channels_last": True, "activations": "bf16"}


@pytest.fixture
def read_by(monkeypatch):
    """read_by(config): the options that a run of it reads."""

    def names(config):
        found, plain = set(), Experiment.__getattribute__

        def noting(self, name):
            found.add(name)
            return plain(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(Experiment, "__getattribute__", noting)
            run(config, quiet=True)
        return found & set(fields())

    return names


@pytest.mark.parametrize("method", METHODS)
def test_a_system_reads_no_option_that_is_said_to_be_of_others(smoke, read_by, method):
    found = set().union(
        *(read_by(smoke(method=method, seed=11, **values)) for values in [{}, *VARIANTS.get(method, [])])
    )
    assert {name for name in found - set(SHARED) if method not in readers(name)} == set()
    own = {name for name in fields() if readers(name) == (method,)}
    assert own <= found  # and what is said to be its own, it reads


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_without_effect_has_none(smoke, method):
    without = {name: value for name, value in SHARED.items() if method not in readers(name)}
    plain, other = (run(smoke(method=method, **values), quiet=True) for values in ({}, without))
    assert all(plain[key] == other[key] for key in ("accuracy", "per_class", "bytes_up", "bytes_down"))
