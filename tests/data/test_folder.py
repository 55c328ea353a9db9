"""Any image-folder tree."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from lscl.data.folder import check_same_classes, class_files, image_folder, split_folders
from lscl.data.store import ImageSet, sort_canonically
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


def test_files_that_are_no_images_are_counted_and_named(photos):
    folder, _ = photos
    before = image_folder(folder, 16)
    (folder / "ant" / "notes.txt").write_text("no image")
    (folder / "bee" / "photo.heic").write_bytes(b"what Pillow cannot read")
    (folder / "bee" / "deep").mkdir()
    (folder / "bee" / "deep" / "Makefile").write_text("all:")
    (folder / "readme.TXT").write_text("in no class folder")
    after = image_folder(folder, 16)
    assert before.notes == () and after.digest == before.digest
    assert after.notes == ("4 files ignored: 2 .txt, 1 .heic, 1 without ending; the first is ant/notes.txt",)
    assert image_folder(folder, 16).notes == after.notes  # also from the cache


def test_hidden_names_are_neither_images_nor_classes(photos):
    folder, _ = photos
    before = image_folder(folder, 16)
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".deep/1.png", "__MACOSX/1.png"):
        (folder / "ant" / name).parent.mkdir(exist_ok=True)
        (folder / "ant" / name).write_bytes(b"no image")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(b"no image")
    after = image_folder(folder, 16)
    assert (after.digest, after.notes) == (before.digest, ())


def test_images_at_any_depth_and_under_any_name_are_read(photos):
    folder, images = photos
    before = image_folder(folder, 16)
    (folder / "cat" / "2021" / "may").mkdir(parents=True)
    (folder / "cat" / "0.png").rename(folder / "cat" / "2021" / "may" / "IMG_0")
    save(images["bee"][0], folder / "bee" / "0.jpg.png")
    (folder / "bee" / "0.png").unlink()
    (folder / "bee" / "0.jpg.png").rename(folder / "bee" / "0.jpg")  # a PNG that is called JPEG
    after = image_folder(folder, 16)
    assert (after.digest, after.notes) == (before.digest, ())


def test_links_in_a_circle_are_followed_once(photos):
    folder, images = photos
    (folder / "cat" / "deep").mkdir()
    save(np.zeros((16, 16, 3)), folder / "cat" / "deep" / "0.png")
    for name, target in (
        ("deep/up", ".."),
        ("deep/self", "."),
        ("again", "deep"),
        ("all", folder),
        ("everything", folder.parent),
    ):
        (folder / "cat" / name).symlink_to(target)
    (folder / "dog").symlink_to("bee")  # a class may be a link
    found = image_folder(folder, 16)
    assert (
        found.classes == ("ant", "bee", "cat", "dog")
        and np.bincount(found.labels).tolist() == [2, 2, 3, 2]
        and found.notes == ()
    )


def test_a_class_that_is_a_link_to_what_it_lies_in_is_one_line(photos, one_line):
    folder, _ = photos
    (folder / "self").symlink_to(".")
    with pytest.raises(LsclError) as caught:
        image_folder(folder, 16)
    one_line(caught, "class folder", folder / "self", "is a link")


NOT_READ = {
    "fifo": "not a regular file",
    "broken link": os.strerror(errno.ENOENT),
    "link to itself": os.strerror(errno.ELOOP),
}


@pytest.mark.parametrize("name", ["p.png", "p"])
@pytest.mark.parametrize("kind", NOT_READ)
def test_what_is_no_regular_file_is_never_opened(photos, name, kind, one_line):
    folder, _ = photos
    path = folder / "ant" / name
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("nothing" if kind == "broken link" else name)
    if name == "p":
        assert image_folder(folder, 16).notes == ("1 file ignored: 1 without ending; the first is ant/p",)
        return
    with pytest.raises(LsclError) as caught:
        image_folder(folder, 16)
    one_line(caught, path, NOT_READ[kind])


@pytest.mark.parametrize("inside", [(), ("notes.txt",), (".hidden.png",), ("deep/",)], ids=str)
def test_a_class_without_an_image_is_one_line(photos, cache, inside, one_line):
    folder, _ = photos
    (folder / "dog").mkdir()
    for name in inside:
        (folder / "dog" / name).mkdir() if name.endswith("/") else (folder / "dog" / name).write_text("")
    with pytest.raises(LsclError) as caught:
        image_folder(folder, 16)
    one_line(caught, "no images in class folder", folder / "dog", "1 .txt" if "notes.txt" in inside else "it is empty")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_names_that_are_no_text_are_read_and_shown_as_escapes(photos):
    folder, images = photos
    before = image_folder(folder, 16)
    os.rename(folder / "ant" / "0.png", os.fsencode(folder / "ant") + b"/caf\xe9.png")
    open(os.fsencode(folder / "ant") + b"/n\xe9\n\x1b[31m.t\xe9t", "wb").close()
    after = image_folder(folder, 16)
    assert after.digest == before.digest
    assert after.notes == (r"1 file ignored: 1 .t\udce9t; the first is ant/n\udce9\n\x1b[31m.t\udce9t",)
    os.rename(folder / "bee", os.fsencode(folder) + b"/b\xe9")
    assert image_folder(folder, 16).classes == ("ant", "b\udce9", "cat")


def test_only_the_first_of_several_pictures_is_used_and_this_is_said(photos):
    folder, images = photos
    pages = [Image.fromarray(image) for image in images["bee"]]
    pages[0].save(folder / "bee" / "0.tiff", save_all=True, append_images=pages[1:])
    (folder / "bee" / "0.png").unlink()
    before = {image.tobytes() for image in images["bee"]}
    found = image_folder(folder, 16)
    assert {image.tobytes() for image in found.images[found.labels == 1]} == before
    assert found.notes == ("1 file with several pictures, the first is used",)


def test_the_order_is_the_canonical_one(photos):
    found = image_folder(photos[0], 16)
    assert isinstance(found.images, np.memmap)  # decoded into the file, never all of them in memory
    assert (
        sort_canonically(ImageSet(np.array(found.images)[::-1], found.labels[::-1], found.classes)).digest
        == found.digest
    )


def test_two_class_folders_that_look_the_same_are_one_line(photos, one_line):
    folder, _ = photos
    (folder / "ant").rename(folder / "caf\u00e9")
    (folder / "bee").rename(folder / "cafe\u0301")
    with pytest.raises(LsclError) as caught:
        class_files(folder)
    one_line(caught, "look the same", r"'caf\xe9'", r"'cafe\u0301'")


@pytest.mark.parametrize(
    ("train", "test"), [("Cat", "cat"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("\ufb01sh", "fish")]
)
def test_class_names_that_differ_in_case_or_form_between_the_splits_are_a_pair(tmp_path, train, test, one_line):
    with pytest.raises(LsclError) as caught:
        check_same_classes(tmp_path, ["a", train], ["a", test])
    one_line(caught, ascii(train), ascii(test), "differ only in case or Unicode form")
    check_same_classes(tmp_path, ["A", "a"], ["a", "A"])  # two classes, both in both splits


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "no folder"),
        (["training", "validation"], "training, validation"),
        (["Train", ".test", "test"], "Train, test"),
        (["train"], "train"),
    ],
)
def test_other_split_names_are_told_with_what_was_expected(tmp_path, names, found, one_line):
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "readme").write_text("")
    with pytest.raises(LsclError) as caught:
        split_folders(tmp_path / "data")
    one_line(caught, tmp_path / "data", f"expected the folders train and test, found {found}")


@pytest.mark.parametrize(
    "content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n", "half"], ids=["empty", "text", "header", "half"]
)
def test_a_corrupt_image_is_named(photos, content, cache, one_line):
    folder, _ = photos
    bad = folder / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:400] if content == "half" else content)
    with pytest.raises(LsclError) as caught:
        image_folder(folder, 16)
    one_line(caught, "corrupt image", bad)
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_a_missing_folder_is_one_line(tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        image_folder(tmp_path / "nowhere", 16)
    one_line(caught, "no data folder", tmp_path / "nowhere")


def test_a_folder_without_images_is_one_line(tmp_path, one_line):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("")
    with pytest.raises(LsclError) as caught:
        image_folder(tmp_path / "data", 16)
    one_line(caught, "no images in", tmp_path / "data", "<class>/<image>")


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
