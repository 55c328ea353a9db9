"""Any image-folder tree."""

import os

import numpy as np
import pytest
from PIL import Image

from lscl.data.folder import image_folder, list_images
from lscl.errors import LsclError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Three classes of two 16-pixel images; images[name][i]."""
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8) for name in ("cat", "ant", "bee")}
    for name, group in images.items():
        for i, image in enumerate(group):
            save(image, tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos", images


def test_classes_are_in_alphabetical_order_and_pixels_are_kept(photos):
    folder, images = photos
    found = image_folder(folder, 16)
    assert found.classes == ("ant", "bee", "cat") and found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for label, name in enumerate(found.classes):
        own = found.images[found.labels == label]
        assert {image.tobytes() for image in own} == {image.tobytes() for image in images[name]}


def test_the_same_images_under_other_file_names_have_the_same_digest(photos, tmp_path):
    folder, images = photos
    for name, group in images.items():
        for i, image in enumerate(group):
            save(image, tmp_path / "renamed" / name / f"x{9 - i}.BMP")
    assert image_folder(tmp_path / "renamed", 16).digest == image_folder(folder, 16).digest


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path):
    wide = np.zeros((32, 96, 3))
    wide[:, :32], wide[:, 32:64], wide[:, 64:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    save(wide, tmp_path / "data" / "a" / "wide.png")
    save(wide.transpose(1, 0, 2), tmp_path / "data" / "a" / "high.png")
    for image in image_folder(tmp_path / "data", 16).images:
        assert image.shape == (16, 16, 3) and (image[2:-2, 2:-2] == (0, 255, 0)).all()


def test_images_of_any_mode_and_odd_size_become_rgb(tmp_path):
    folder = tmp_path / "data" / "a"
    save(np.full((9, 7), 100), folder / "grey.png")
    save(np.full((16, 16, 4), (1, 2, 3, 255)), folder / "alpha.png")
    save(np.full((33, 200, 3), 50), folder / "odd.jpeg")
    found = {tuple(image.reshape(-1, 3).mean(0).round()) for image in image_folder(tmp_path / "data", 16).images}
    assert found == {(100, 100, 100), (1, 2, 3), (50, 50, 50)}


def test_files_that_are_no_images_are_passed_over(photos):
    folder, _ = photos
    before = list_images(folder)
    (folder / "ant" / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "readme.png").write_bytes(b"not in a class folder")
    (folder / "empty").mkdir()
    assert list_images(folder) == before and len(before) == 6


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n", "half"], ids=["empty", "text", "header", "half"])
def test_a_corrupt_image_is_named(photos, content, cache, one_line):
    folder, _ = photos
    bad = folder / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:400] if content == "half" else content)
    with pytest.raises(LsclError) as caught:
        image_folder(folder, 16)
    one_line(caught, "corrupt image", bad)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_missing_folder_is_one_line(tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        image_folder(tmp_path / "nowhere", 16)
    one_line(caught, "no data folder", tmp_path / "nowhere")


def test_a_folder_without_images_is_one_line(tmp_path, one_line):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(LsclError) as caught:
        image_folder(tmp_path / "data", 16)
    one_line(caught, "no images in", tmp_path / "data", ".png", ".jpg")


def test_a_changed_image_is_decoded_again(photos):
    folder, _ = photos
    before = image_folder(folder, 16).digest
    path = folder / "cat" / "0.png"
    save(np.zeros((16, 16, 3)), path)
    assert image_folder(folder, 16).digest != before


def test_another_size_is_decoded_again(photos):
    assert image_folder(photos[0], 16).images.shape[1:] == (16, 16, 3)
    assert image_folder(photos[0], 8).images.shape[1:] == (8, 8, 3)


def test_folders_that_agree_in_names_sizes_and_times_are_told_apart(tmp_path):
    """As train/ and test/ of an archive with fixed times and uncompressed images."""
    for split, value in (("train", 10), ("test", 200)):
        save(np.full((16, 16, 3), value), tmp_path / split / "a" / "0.bmp")
        os.utime(tmp_path / split / "a" / "0.bmp", ns=(0, 0))
    assert [int(image_folder(tmp_path / split, 16).images.mean()) for split in ("train", "test")] == [10, 200]
