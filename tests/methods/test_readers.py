"""Which options a system reads: those of others may be refused, for they change nothing."""

from typing import get_args

import pytest

from lscl.config import Experiment, MethodName, readers
from lscl.experiments.run import run

VARIANTS = {
    "fed_lscl": [{"continual": "ewc"}, {"continual": "lwf"}, {"continual": "replay"}, {"o2d": "sgd"}, {"o2d": "average"}, {"auxiliary": 1.0}],
    "fedmgp": [{"head": "mlp"}],
}
# Read by code that all systems share, without effect on those that `readers` does not name: block is compared with the ViT's depth,
# head_merge is looked at before the rows of a head are, cnn_size is that of images that a system without a CNN never asks for.
SHARED = {"block": 0, "head_merge": "holders", "cnn_size": 20, "channels_last": True, "activations": "bf16"}


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
        return found & set(Experiment.model_fields)

    return names


@pytest.mark.parametrize("method", get_args(MethodName))
def test_a_system_reads_no_option_that_is_said_to_be_of_others(smoke, read_by, method):
    found = set().union(*(read_by(smoke(method=method, seed=11, **values)) for values in [{}, *VARIANTS.get(method, [])]))
    assert {name for name in found - set(SHARED) if method not in readers(name)} == set()
    own = {name for name in Experiment.model_fields if readers(name) == (method,)}
    assert own <= found  # and what is said to be its own, it reads


@pytest.mark.parametrize("method", get_args(MethodName))
def test_what_is_read_without_effect_has_none(smoke, method):
    without = {name: value for name, value in SHARED.items() if method not in readers(name)}
    plain, other = (run(smoke(method=method, **values), quiet=True) for values in ({}, without))
    assert all(plain[key] == other[key] for key in ("accuracy", "per_class", "bytes_up", "bytes_down"))
