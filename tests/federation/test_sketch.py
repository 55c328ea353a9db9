"""What a system declares for its diagram."""

import pytest

from lscl.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_system_of_ours_has_a_sketch_that_fits_it(method):
    kind = METHODS[method]
    sketch = kind.sketch
    assert sketch.row[0].text == "image" and sketch.row[-1].text == "class"
    assert len(sketch.helpers) <= len(sketch.row)
    assert all(part.arrow == "down" for part in (sketch.helpers[len(sketch.row) - 1 :]) if part)  # none to the right
    parts = [part for part in (*sketch.row, *sketch.helpers) if part]
    assert any(part.kind == "trained" for part in parts) == kind.trains
    assert any(part.text == "frozen ViT" for part in parts) == kind.vit
    assert bool(sketch.up) == bool(sketch.server) == bool(sketch.down) == (not method.startswith("local_"))
