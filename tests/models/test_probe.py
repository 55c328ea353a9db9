"""The linear probe of the frozen features."""

import json
import shutil

import pytest

from lscl.config import experiment
from lscl.data.sources import load
from lscl.data.store import Dataset, ImageSet
from lscl.errors import LsclError
from lscl.models.probe import probe
from lscl.models.vit import foundation


def test_a_probe_is_written_and_repeats(smoke, places):
    result = probe(smoke(), 6)
    (path,) = (places / "results" / "probe").glob("*.json")
    assert (
        path.name == f"tiny--{smoke().source}--image_size=16--6.json"
        and json.loads(path.read_text(encoding="utf-8")) == result
    )
    assert probe(smoke(), 6) == result
    data = load(smoke(images_per_class=None, test_images_per_class=None))
    assert (result["data_digest"], result["weights_digest"]) == (data.digest, foundation("tiny", None).digest)


def test_probes_of_other_images_or_values_have_names_of_their_own(smoke, tree, tmp_path, places):
    shutil.copytree(tree, tmp_path / "other")
    next((tmp_path / "other" / "train" / "class00").iterdir()).unlink()
    ways = ({}, {"data_dir": tmp_path / "other"}, {"normalize": False}, {"image_size": 24}, {"duplicates": "drop"})
    for values in ways:
        probe(smoke(**values), 2)
    assert len(list((places / "results" / "probe").iterdir())) == len(ways)
    probe(experiment(profile="smoke"), 2)
    assert (places / "results" / "probe" / "tiny--glyphs--2.json").is_file()


def test_classes_that_differ_in_colour_are_told_apart_the_better_the_more_images(smoke):
    one, six = probe(smoke(), 1), probe(smoke(), 6)
    assert six["classes"] == 14 and (one["images_per_class"], six["images_per_class"]) == (1, 6)
    assert 60 < six["accuracy_all"] <= six["accuracy_8"] <= 100
    assert one["accuracy_all"] < six["accuracy_all"]


def test_more_images_than_there_are_is_one_line(smoke, one_line):
    with pytest.raises(LsclError) as caught:
        probe(smoke(), 7)
    one_line(caught, "folder train: class 'class00' has 6 images, 7 per class were asked for")


@pytest.mark.parametrize("count", [0, -1, 10**24])
def test_a_number_of_images_out_of_range_is_one_line(smoke, count, one_line):
    with pytest.raises(LsclError) as caught:
        probe(smoke(), count)
    one_line(caught, f"{count}")


def test_too_few_images_for_a_cross_validation_are_one_line(smoke, monkeypatch, one_line):
    data = load(smoke(images_per_class=None, test_images_per_class=None))
    one_class = lambda images: ImageSet(images.images[:2], images.labels[:2], images.classes[:1])
    monkeypatch.setattr(
        "lscl.models.probe.load", lambda config: Dataset("one", one_class(data.train), one_class(data.test))
    )
    with pytest.raises(LsclError) as caught:
        probe(smoke(), 1)
    one_line(caught, "per_class = 1", "cross-validation")
