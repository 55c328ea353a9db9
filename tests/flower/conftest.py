"""What the tests over Flower share; nothing of Flower is imported before a test asks for it."""

import itertools
import json

import pytest


@pytest.fixture
def over_flower(places, monkeypatch, tree):
    """over_flower(config, settings, lost, grid): the record of a run over a stub grid, and the grid."""
    from stub_grid import StubGrid

    monkeypatch.setenv("LSCL_PRIVATE", str(places / "private"))
    monkeypatch.setenv("LSCL_DATA_DIR", str(tree))
    monkeypatch.setattr("lscl.flower.grid.PAUSE", 0)
    next_run = itertools.count(1)

    def make(config, settings=None, lost=lambda exchange, client: None, grid=StubGrid):
        grid = grid(config, settings, lost, next(next_run))
        grid.serve()
        return json.loads(
            (places / "results" / "federation" / "runs" / f"{config.name}.json").read_text(encoding="utf-8")
        ), grid

    return make
