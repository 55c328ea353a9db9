"""`lscl data check`: what is in a folder, before anything is computed."""

import shutil

import numpy as np
import pytest
from PIL import Image
from test_cli import call


@pytest.fixture
def photos(tree, tmp_path):
    """A copy of the tree; photos / split / class is to be changed by the test."""
    shutil.copytree(tree, tmp_path / "photos")
    return tmp_path / "photos"


def test_a_clean_folder_is_usable(photos, capsys):
    code, out, err = call(capsys, "data", "check", str(photos))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{photos}: train and test found",
        "train: 84 images of 14 classes, 6 per class",
        "  formats: PNG 84",
        "  modes: RGB 84",
        "  sizes in pixels: 16 x 16",
        "test: 28 images of 14 classes, 2 per class",
        "  formats: PNG 28",
        "  modes: RGB 28",
        "  sizes in pixels: 16 x 16",
        "at 32 pixels a side, equal pixels: none",
        "usable: --dataset folder, --images-per-class up to 6, --test-images-per-class up to 2, 14 classes",
    ]


def test_everything_worth_knowing_is_in_the_report(photos, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    one, two = photos / "train" / "class01", photos / "train" / "class02"
    Image.new("RGB", (40, 20), "red").save(one / "turned.jpg", exif=exif)
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(one / "deep.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(one / "clear.png")
    Image.new("L", (9, 9), 4).save(one / "two.gif", save_all=True, append_images=[Image.new("L", (9, 9), 99)])
    (two / "notes.txt").write_text("")
    (two / ".hidden").write_text("")
    (photos / "val").mkdir()
    shutil.copy(next((photos / "test" / "class00").iterdir()), two / "a.png")
    shutil.copy(sorted(two.glob("0*.png"))[0], two / "b.png")
    code, out, err = call(capsys, "data", "check", str(photos), "--image-size", "16")
    assert (code, err) == (0, "")
    for line in (
        f"{photos}: train and test found; not looked at: val",
        "train: 90 images of 14 classes, 6 to 10 per class",
        "  formats: PNG 88, JPEG 1, GIF 1",
        "  done to images: put on white 1, scaled to 8 bits 1, turned upright 1, first of several pictures 1",
        "  sizes in pixels: 9 x 9 to 40 x 20, 3 different ones",
        "  1 file ignored: 1 .txt; the first is class02/notes.txt",
        "at 16 pixels a side, equal pixels: 2 groups of 4 images; "
        "1 within train, 0 within test, 1 across train and test, 1 with different classes",
        "  --duplicates drop leaves the training images among them out",
    ):
        assert line in out.splitlines(), out
    assert (
        "most: class01 10, class02 8" in out
        and "= train/class02/b.png" in out
        and "train/class02/a.png = test/class00/" in out
    )


def unreadable(photos):
    (photos / "train" / "class01" / "bad.png").write_bytes(b"no image")
    (photos / "test" / "class05" / "worse.jpg").write_bytes(b"")


def empty(photos):
    (photos / "train" / "new").mkdir()
    (photos / "test" / "new").mkdir()


PROBLEMS = {
    "corrupt image {0}/train/class01/bad.png: no format that Pillow reads (and 1 more problem)": unreadable,
    "no images in class folder {0}/train/new (and 1 more problem)": empty,
    "'class03' is in only one of them, test": lambda photos: shutil.rmtree(photos / "train" / "class03"),
    "'CLASS03' and 'class03' differ only in case": lambda photos: (photos / "train" / "class03").rename(
        photos / "train" / "CLASS03"
    ),
    "expected the folders train and test, found test, training": lambda photos: (photos / "train").rename(
        photos / "training"
    ),
    "no data folder {0}": lambda photos: shutil.rmtree(photos),
    "no images in {0}/test: expected a folder for each class": lambda photos: (
        shutil.rmtree(photos / "test") or (photos / "test").mkdir()
    ),
}


@pytest.mark.parametrize("says", PROBLEMS)
def test_what_cannot_be_used_is_one_line_and_exit_code_2_as_in_a_run(photos, capsys, says):
    PROBLEMS[says](photos)
    code, out, err = call(capsys, "data", "check", str(photos))
    assert code == 2 and len(err.splitlines()) == 1 and says.format(photos) in err
    assert "usable" not in out
    code, _, err = call(capsys, "data", "show", "--profile", "smoke", "--dataset", "folder", "--data-dir", str(photos))
    assert code == 2 and len(err.splitlines()) == 1


def test_every_unreadable_file_is_listed_up_to_five(photos, capsys):
    for number in range(7):
        (photos / "train" / "class01" / f"bad\n{number}.png").write_bytes(b"no image")
    code, out, _ = call(capsys, "data", "check", str(photos))
    assert code == 2 and "  7 images unreadable:" in out and "    and 2 more" in out
    assert rf"    corrupt image {photos}/train/class01/bad\n4.png" in out and r"bad\n5" not in out
