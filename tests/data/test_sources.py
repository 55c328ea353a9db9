"""Data sets by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100

from lscl import paths
from lscl.config import PROFILES, experiment
from lscl.data import sources
from lscl.data.folder import image_folder
from lscl.data.glyphs import glyphs
from lscl.data.sources import first_per_class, folder_digest, load, surrogate
from lscl.data.store import ImageSet, cache_images
from lscl.errors import LsclError
from lscl.registry import DATASETS, register_dataset


@pytest.fixture
def hundred(tmp_path):
    """A tree of 100 classes with one image in each split."""
    for split, value in (("train", 100), ("test", 50)):
        for label in range(100):
            path = tmp_path / "hundred" / split / f"c{label:02d}" / "0.bmp"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (value, label, 0)).save(path)
    return tmp_path / "hundred"


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_read_at_the_wanted_size(smoke):
    data = load(smoke(image_size=8))
    assert data.name == "folder" and data.classes == tuple(f"class{label:02d}" for label in range(14))
    assert data.train.images.shape == (84, 8, 8, 3) and data.test.images.shape == (28, 8, 8, 3)


def test_fewer_images_per_class_are_the_first_of_each_class(smoke):
    whole, part = load(smoke()), load(smoke(images_per_class=4, test_images_per_class=1))
    assert np.bincount(part.train.labels).tolist() == [4] * 14 and np.bincount(part.test.labels).tolist() == [1] * 14
    first = [i for i in range(84) if i % 6 < 4]
    assert np.array_equal(part.train.images, whole.train.images[first]) and np.array_equal(
        part.train.labels, whole.train.labels[first]
    )
    assert part.digest != whole.digest


def test_no_limit_gives_all_images(smoke):
    config = smoke(images_per_class=None, test_images_per_class=None)
    assert len(load(config).train) == 84 and len(load(config).test) == 28


def test_images_per_class_do_not_depend_on_the_order_of_the_classes():
    labels = np.array([2, 0, 1, 0, 2, 1, 0, 1, 2])
    images = ImageSet(np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, 3), labels, ("a", "b", "c"))
    part = first_per_class(images, 2, "toy")
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2] and part.images[:, 0, 0, 0].tolist() == [1, 3, 2, 5, 0, 4]


def test_too_many_images_per_class_name_the_class(smoke, tree, tmp_path, one_line):
    shutil.copytree(tree, tmp_path / "tree")
    (tmp_path / "tree" / "train" / "class09" / next((tmp_path / "tree" / "train" / "class09").iterdir()).name).unlink()
    with pytest.raises(LsclError) as caught:
        load(smoke(data_dir=tmp_path / "tree"))
    one_line(caught, "folder train: class 'class09' has 5 images, 6 per class were asked for")
    with pytest.raises(LsclError) as caught:
        load(smoke(test_images_per_class=3))
    one_line(caught, "folder test: class 'class00' has 2 images, 3 per class were asked for")


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_in_only_one_split_are_named(smoke, tree, tmp_path, split, one_line):
    shutil.copytree(tree, tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree" / split / "class03")
    with pytest.raises(LsclError) as caught:
        load(smoke(data_dir=tmp_path / "tree"))
    one_line(caught, tmp_path / "tree", "'class03' is in only one of them")


def test_a_folder_data_set_needs_a_folder(one_line):
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="smoke", dataset="folder"))
    one_line(caught, "needs data_dir", "train/<class>/<image>")


def one_set(pixels=lambda images: images, labels=lambda labels: labels, classes=tuple("abcdef")):
    """Six classes of two images of 32 pixels each, in which something is other than it should be."""
    images = np.zeros((12, 32, 32, 3), np.uint8)
    return ImageSet(pixels(images), labels(np.repeat(np.arange(6), 2)), classes)


FOREIGN = {
    "nothing": (lambda: None, "returns something else (NoneType), wanted are two lscl.data.store.ImageSet"),
    "lists": (lambda: ([1], [2]), "returns something else (tuple)"),
    "one set": (lambda: one_set(), "returns something else (ImageSet)"),
    "three sets": (lambda: [one_set()] * 3, "returns something else (list)"),
    "another order of classes": (
        lambda: (one_set(), one_set(classes=tuple("abdcef"))),
        "training and test images have other classes from number 2 on",
    ),
    "a class more": (lambda: (one_set(), one_set(classes=tuple("abcdefg"))), "other classes from number 6 on"),
    "a list of classes": (lambda: (one_set(classes=list("abcdef")), one_set()), "wanted is a tuple of names"),
    "no classes": (lambda: (one_set(classes=()), one_set()), "training images: classes = (): wanted"),
    "numbers as classes": (lambda: (one_set(classes=tuple(range(6))), one_set()), "wanted is a tuple of names"),
    "a label too few": (
        lambda: (one_set(labels=lambda labels: labels[:-1]), one_set()),
        "training images: their labels are (11,) numbers of int64, wanted are (12,) numbers of int64",
    ),
    "labels of floats": (
        lambda: (one_set(), one_set(labels=lambda labels: labels.astype(np.float32))),
        "test images: their labels are (12,) numbers of float32",
    ),
    "a list of labels": (lambda: (one_set(labels=list), one_set()), "their labels are a list"),
    "negative labels": (
        lambda: (one_set(labels=lambda labels: labels - 1), one_set()),
        "their labels go from -1 to 4, allowed are 0 to 5",
    ),
    "labels too large": (lambda: (one_set(), one_set(labels=lambda labels: labels + 1)), "go from 1 to 6"),
    "floats": (
        lambda: (one_set(lambda images: images / np.float32(255)), one_set()),
        "they are (12, 32, 32, 3) numbers of float32, wanted are (32, 32, 3) numbers of uint8 for each image",
    ),
    "channels first": (
        lambda: (one_set(lambda images: images.transpose(0, 3, 1, 2)), one_set()),
        "they are (12, 3, 32, 32) numbers of uint8",
    ),
    "another size": (
        lambda: (one_set(), one_set(lambda images: images[:, ::2, ::2])),
        "test images: they are (12, 16, 16, 3) numbers of uint8, wanted are (32, 32, 3)",
    ),
    "grey": (lambda: (one_set(lambda images: images[..., 0]), one_set()), "they are (12, 32, 32) numbers"),
    "a list of images": (lambda: (one_set(list), one_set()), "they are a list"),
    "no images": (lambda: (one_set(lambda images: images[:0]), one_set()), "they are (0, 32, 32, 3) numbers"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_registered_function_returns_is_checked(case, one_line):
    make, words = FOREIGN[case]
    register_dataset("foreign", lambda config: make())
    try:
        for read in (load, folder_digest):
            with pytest.raises(LsclError) as caught:
                read(experiment(profile="smoke", dataset="foreign"))
            one_line(caught, "data set 'foreign'", words)
    finally:
        DATASETS.remove("foreign")


def test_labels_of_any_integer_type_are_read_as_the_same_data_set():
    """numpy's default is int32 on some systems."""
    found = []
    for kind in (np.int64, np.int32, np.uint8):
        register_dataset("foreign", lambda config, kind=kind: [one_set(labels=lambda one: one.astype(kind))] * 2)
        found.append(load(experiment(profile="smoke", dataset="foreign", images_per_class=2, test_images_per_class=2)))
        DATASETS.remove("foreign")
    assert {one.train.labels.dtype for one in found} == {np.dtype(np.int64)}
    assert len({one.digest for one in found}) == 1


@pytest.mark.parametrize("dataset", ["folder", "cifar100"])
def test_a_missing_folder_is_one_line(smoke, tmp_path, dataset, one_line):
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="smoke", dataset=dataset, data_dir=tmp_path / "nowhere"))
    one_line(caught, "no data folder", tmp_path / "nowhere")


def test_a_folder_without_torchvisions_files_is_one_line_and_nothing_is_downloaded(
    own_cache, tmp_path, monkeypatch, one_line
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "archive").write_bytes(b"what a download would get")
    monkeypatch.setattr(CIFAR100, "url", (tmp_path / "archive").as_uri())
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="mini", dataset="cifar100", data_dir=tmp_path / "empty"))
    one_line(caught, "CIFAR-100 not found in", tmp_path / "empty", "--data-dir")
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "cache").exists()


def test_cifar100_under_other_split_names_says_what_was_expected_and_found(own_cache, tmp_path, one_line):
    for name in ("training", "validation", ".git"):
        (tmp_path / "data" / name / "apple").mkdir(parents=True)
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="mini", dataset="cifar100", data_dir=tmp_path / "data"))
    one_line(
        caught,
        "CIFAR-100 not found in",
        "expected the folders train and test, or torchvision's cifar-100-python, found training, validation;",
    )


def test_what_a_folder_holds_beside_images_is_told_at_every_loading(smoke, tree, tmp_path, capsys):
    shutil.copytree(tree, tmp_path / "tree")
    (tmp_path / "tree" / "test" / "class01" / "list.csv").write_text("")
    for _ in range(2):
        load(smoke(data_dir=tmp_path / "tree"))
        assert (
            capsys.readouterr().err
            == f"{tmp_path / 'tree' / 'test'}: 1 file ignored: 1 .csv; the first is class01/list.csv\n"
        )


def test_a_download_that_fails_is_one_line(own_cache, tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(CIFAR100, "url", (tmp_path / "gone").as_uri())
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="mini", dataset="cifar100"))
    one_line(caught, "CIFAR-100 not found in", tmp_path / "cache" / "downloads", "--data-dir")


def test_damaged_torchvision_files_are_one_line(own_cache, tmp_path, one_line):
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (tmp_path / "data" / "cifar-100-python" / name).write_bytes(b"damaged")
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="mini", dataset="cifar100", data_dir=tmp_path / "data"))
    one_line(caught, "CIFAR-100 not found in", tmp_path / "data")


def test_cifar100_can_be_a_tree_of_100_classes(hundred, monkeypatch):
    monkeypatch.setattr(
        sources, "CIFAR100_DIGESTS", tuple(image_folder(hundred / split, 32).digest for split in ("train", "test"))
    )
    data = load(
        experiment(profile="mini", dataset="cifar100", data_dir=hundred, images_per_class=1, test_images_per_class=1)
    )
    assert len(data.classes) == 100 and data.name == "cifar100"
    assert data.train.images[7, 0, 0].tolist() == [100, 7, 0] and data.test.images[7, 0, 0].tolist() == [50, 7, 0]


def test_a_tree_of_other_images_is_not_called_cifar100(hundred, one_line):
    with pytest.raises(LsclError) as caught:
        load(
            experiment(
                profile="mini", dataset="cifar100", data_dir=hundred, images_per_class=1, test_images_per_class=1
            )
        )
    one_line(caught, hundred, "does not hold the pixels of CIFAR-100", "--dataset folder")


def test_a_folder_without_cifar100_is_refused_whatever_another_source_left_in_the_cache(
    own_cache, tmp_path, monkeypatch, one_line
):
    made = ImageSet(np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1]), ("a", "b"))
    for split in ("train", "test"):
        cache_images(f"cifar100-{split}", lambda: made)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path):
        with pytest.raises(LsclError) as caught:
            load(experiment(profile="mini", dataset="cifar100", data_dir=folder))
        one_line(caught, "CIFAR-100 not found in", folder)


def test_two_sources_of_cifar100_are_decoded_apart(own_cache, tmp_path, monkeypatch):
    class Source:
        base_folder, classes = "cifar-100-python", [f"c{label}" for label in range(2)]

        def __init__(self, home, train, download):
            value = int((Path(home) / self.base_folder / "train").read_text())
            self.data, self.targets = np.full((4, 32, 32, 3), value, np.uint8), [0, 0, 1, 1]

    monkeypatch.setattr(sources, "CIFAR100", Source)
    for value in (1, 2):
        (tmp_path / str(value) / Source.base_folder).mkdir(parents=True)
        (tmp_path / str(value) / Source.base_folder / "train").write_text(str(value))
    values = {"profile": "mini", "dataset": "cifar100", "images_per_class": 1, "test_images_per_class": 1}
    found = [load(experiment(**values, data_dir=tmp_path / str(value))).train.images for value in (1, 2, 1)]
    assert [int(images.max()) for images in found] == [1, 2, 1]


def test_images_in_use_are_hashed_once_and_again_after_a_change(own_cache):
    made = ImageSet(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a", "b"))
    first = cache_images("toy", lambda: made)
    assert cache_images("toy", lambda: pytest.fail("decoded again")) is first
    path = paths.cache() / "images" / "toy" / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cache_images("toy", lambda: made) is not first and np.array_equal(
        cache_images("toy", lambda: made).images, made.images
    )


def test_cifar100_with_another_number_of_classes_is_refused(hundred, one_line):
    for split in ("train", "test"):
        shutil.rmtree(hundred / split / "c42")
    with pytest.raises(LsclError) as caught:
        load(experiment(profile="mini", dataset="cifar100", data_dir=hundred))
    one_line(caught, hundred, "has 99 training and 99 test classes, CIFAR-100 has 100")


def test_glyphs_are_reduced_like_any_other_data_set():
    data = load(experiment(profile="smoke"))
    train, test = glyphs()
    assert np.bincount(data.train.labels).tolist() == [6] * 200 and np.bincount(data.test.labels).tolist() == [2] * 200
    for part, whole in ((data.train, train), (data.test, test)):
        count = len(part) // 200
        assert all(
            np.array_equal(part.images[part.labels == k], whole.images[whole.labels == k][:count]) for k in (0, 57, 199)
        )


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_finds_enough_glyphs(profile):
    config = experiment(profile=profile, dataset="glyphs")
    data = load(config)
    assert len(data.classes) == 200
    assert len(data.train) == 200 * (config.images_per_class or 24) and len(data.test) == 200 * (
        config.test_images_per_class or 8
    )


# ---- images for a server


def test_a_servers_images_stand_behind_those_that_are_tested_on(smoke):
    config = smoke(test_images_per_class=1, mgp_surrogate_per_class=1)
    spare, whole = surrogate(config, "mgp_surrogate_per_class"), load(smoke(test_images_per_class=None)).test
    assert spare.labels.tolist() == list(range(14)) and np.array_equal(spare.images, whole.images[1::2])
    assert np.array_equal(load(config).test.images, whole.images[::2])


def test_with_holdout_the_official_test_images_are_free_for_the_server(smoke):
    spare = surrogate(smoke(eval_split="holdout", mgp_surrogate_per_class=2), "mgp_surrogate_per_class")
    assert np.array_equal(spare.images, load(smoke()).test.images) and np.bincount(spare.labels).tolist() == [2] * 14


def test_without_spare_test_images_one_line_says_what_to_set(smoke, one_line):
    for values, words in (
        (
            {"test_images_per_class": None},
            ["20 images per class", "set eval_split = holdout, or test_images_per_class"],
        ),
        (
            {"test_images_per_class": 1, "mgp_surrogate_per_class": 2},
            ["'class00' has 2 images", "1 per class to test on", "2 on the server", "holdout"],
        ),
        ({"eval_split": "holdout", "mgp_surrogate_per_class": 3}, ["has 2 images", "0 per class", "3 on the server"]),
    ):
        with pytest.raises(LsclError) as caught:
            surrogate(smoke(**values), "mgp_surrogate_per_class")
        one_line(caught, *words)
