"""Few real images for tests of systems at the shapes of the profile mini."""

from dataclasses import replace

import numpy as np
import pytest

from lscl.data.glyphs import glyphs
from lscl.data.store import Dataset


@pytest.fixture
def few_glyphs():
    """few_glyphs(classes, train, test): the first classes of the glyphs, with so many images of each."""

    def make(classes, *counts):
        sets = []
        for images, count in zip(glyphs(), counts, strict=True):
            index = [i for label in range(classes) for i in np.flatnonzero(images.labels == label)[:count]]
            sets.append(replace(images.subset(np.array(index)), classes=images.classes[:classes]))
        return Dataset("glyphs", *sets)

    return make
