"""Single image files as they lie around: what is in them is what is trained on."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lscl.data.picture import decode_picture, is_picture, max_pixels, read_picture, square
from lscl.errors import LsclError


@pytest.fixture
def colours():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))


def pixels(path):
    return np.asarray(read_picture(path, str(path)).rgb)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff", "jpg", "webp"])
def test_exif_orientation_is_followed(tmp_path, colours, turn, ending):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{ending}"
    colours.save(path, exif=exif)
    with Image.open(path) as saved:
        wanted = ImageOps.exif_transpose(saved).convert("RGB")
    assert np.array_equal(pixels(path), np.asarray(wanted))
    assert read_picture(path, "").rgb.size == ((12, 20) if turn > 4 else (20, 12))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_changes_nothing(tmp_path, colours, value):
    exif = Image.Exif()
    exif[0x0112] = value
    colours.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(colours))


def test_damaged_exif_changes_nothing(tmp_path, colours):
    colours.save(tmp_path / "a.png", exif=b"Exif\x00\x00damaged")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(colours))


DEEP = np.array([[0, 257, 32768, 65535]] * 3, np.uint16)


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm", "jp2"])
def test_grey_of_16_bits_is_scaled_by_its_depth(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(DEEP).save(path)
    found = read_picture(path, "")
    assert np.asarray(found.rgb)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)] and found.changes == (
        "scaled to 8 bits",
    )


def test_a_pgm_of_10_bits_and_a_tiff_where_0_is_white(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1023\n" + struct.pack(">HH", 0, 1023))
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 255]
    Image.fromarray(DEEP).save(tmp_path / "b.tiff", tiffinfo={262: 0})
    assert pixels(tmp_path / "b.tiff")[0, :, 0].tolist() == [255, 254, 127, 0]


def twelve_bits(*values):
    """A TIFF of one row with 12 bits a pixel: two values in three bytes."""
    data = b"".join(struct.pack(">I", (a << 12 | b))[1:] for a, b in zip(values[::2], values[1::2]))
    tags = [(256, len(values)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(data))]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + bytes(4)
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_4095_is_white_with_12_bits(tmp_path):
    (tmp_path / "a.tif").write_bytes(twelve_bits(0, 4095, 2048, 16))
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 128, 1]


def test_floats_go_from_0_to_1(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tiff")
    assert pixels(tmp_path / "a.tiff")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, np.nan, np.inf])
def test_floats_outside_of_0_to_1_are_refused(tmp_path, value, one_line):
    Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(LsclError) as caught:
        square(tmp_path / "a.tiff", 8, "scan/a.tiff")
    one_line(caught, "cannot use image scan/a.tiff", "allowed is 0 to 1")


@pytest.mark.parametrize("values", [np.array([[0, 255]], np.int32), np.array([[-1000, 70000]], np.int32)])
def test_whole_numbers_without_an_agreed_white_are_refused(tmp_path, values, one_line):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(LsclError) as caught:
        square(tmp_path / "a.tiff", 8, "scan/a.tiff")
    one_line(caught, "cannot use image scan/a.tiff", "no convention says which")


def test_what_is_transparent_is_white(tmp_path):
    half = np.full((4, 4, 4), (200, 0, 100, 0), np.uint8)
    half[:2, :, 3] = (0, 255, 128, 255)
    Image.fromarray(half).save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png")[0].tolist() == [[255] * 3, [200, 0, 100], [227, 127, 177], [200, 0, 100]]
    assert (pixels(tmp_path / "rgba.png")[2:] == 255).all()
    for mode, colour, clear, format in [
        ("LA", (10, 0), None, "png"), ("RGB", (9, 8, 7), (9, 8, 7), "png"), ("L", 9, 9, "png"), ("1", 0, 0, "png"),
        ("P", 0, 0, "png"), ("P", 0, 0, "gif"), ("I;16", 16, 16, "png"),
        ("RGBA", (1, 2, 3, 0), None, "webp"), ("RGBA", (1, 2, 3, 0), None, "tiff"),
    ]:  # fmt: skip
        path = tmp_path / f"{mode.replace(';', '')}.{format}"
        Image.new(mode, (4, 4), colour).save(path, **({} if clear is None else {"transparency": clear}))
        assert (pixels(path) == 255).all(), (mode, format)


def test_opaque_images_are_equal_to_the_bit_with_and_without_alpha(tmp_path, colours):
    for mode in ("RGB", "RGBA"):
        colours.convert(mode).save(tmp_path / "a.png")
        assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(colours))


@pytest.mark.parametrize(
    ("mode", "white", "ending"),
    [
        ("1", 1, "png"),
        ("L", 255, "bmp"),
        ("CMYK", (0, 0, 0, 0), "jpg"),
        ("YCbCr", (255, 128, 128), "tiff"),
        ("CMYK", (0, 0, 0, 0), "tiff"),
    ],
)
def test_other_modes_become_rgb(tmp_path, mode, white, ending):
    path = tmp_path / f"a.{ending}"
    Image.new(mode, (16, 16), white).save(path)
    found = read_picture(path, "")
    assert found.mode == mode and (np.asarray(found.rgb) == 255).all()


def test_an_open_image_is_decoded_as_its_file(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "floats.tiff")
    for path in tmp_path.iterdir():
        wanted = read_picture(path, "")
        with Image.open(path) as picture:
            found = decode_picture(picture, "")
        assert np.array_equal(np.asarray(found.rgb), np.asarray(wanted.rgb)) and found.changes == wanted.changes != ()
    assert decode_picture(colours, "").format == "" and decode_picture(colours, "").rgb.tobytes() == colours.tobytes()


def test_an_open_image_without_pixels_is_one_line(tmp_path, colours, one_line):
    colours.save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    closed, cut = (Image.open(tmp_path / name) for name in ("a.png", "cut.png"))
    closed.close()
    for picture, words in (
        (Image.new("RGB", (0, 5)), "empty image 3: 0 x 5 pixels"),
        (cut, "corrupt image 3: "),
        (closed, "corrupt image 3: "),
        (Image.new("I", (4, 4)), "cannot use image 3: no convention"),
    ):
        with pytest.raises(LsclError) as caught, picture:
            decode_picture(picture, "3")
        one_line(caught, words)


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["a.png", "a", "a.txt"])
def test_a_small_file_that_declares_a_huge_image_is_one_line(tmp_path, name, one_line):
    path = tmp_path / name
    path.write_bytes(png(60_000, 60_000))
    assert is_picture(path)
    with pytest.raises(LsclError) as caught:
        read_picture(path, str(path))
    one_line(caught, "too large image", path, f"{max_pixels():,} pixels")


def test_a_large_image_within_the_limit_is_no_warning(tmp_path, one_line):
    (tmp_path / "a.png").write_bytes(png(10_000, 9_000))  # Pillow warns; its pixels are not there
    with pytest.raises(LsclError) as caught:
        read_picture(tmp_path / "a.png", "a.png")
    one_line(caught, "corrupt image a.png", "truncated")


def test_an_image_that_is_all_length_is_one_line(tmp_path, one_line):
    Image.new("L", (1, 60_000)).save(tmp_path / "a.png")
    assert square(tmp_path / "a.png", 8, "").shape == (8, 8, 3)
    with pytest.raises(LsclError) as caught:
        square(tmp_path / "a.png", 1024, "a.png")
    one_line(caught, "too narrow image a.png", "1 x 60000 pixels")


def test_no_program_is_started_for_a_drawing(tmp_path, one_line):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(LsclError) as caught:
        read_picture(path, str(path))
    one_line(caught, "corrupt image", path, "no format that Pillow reads")  # not: no Ghostscript found


def test_pillow_writes_nothing_beside_the_line(tmp_path):
    """It logs what it finds in some files, and Python prints that where nobody has set up logging."""
    (tmp_path / "a.tif").write_bytes(
        twelve_bits(0, 1).replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 99))
    )
    code = """
import sys, pathlib, lscl.data.picture as p
try:
    p.read_picture(pathlib.Path(sys.argv[1]), "a")
except p.LsclError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.tif")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("corrupt image a: ") and done.stderr == ""


def test_any_damage_is_one_line_or_an_image(colours, capfd, one_line):
    """Bytes changed and cut at random in files of many kinds."""
    draw, seeds = np.random.default_rng(0), []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "PCX", "SGI"):
        file = io.BytesIO()
        colours.save(file, kind)
        seeds.append(file.getvalue())
    ends = set()
    for number in range(600):
        data = bytearray(seeds[number % len(seeds)])
        for at in draw.integers(0, min(len(data), 200), draw.integers(1, 5)):
            data[at] = draw.integers(0, 256)
        try:
            assert square(io.BytesIO(data[: draw.integers(len(data) // 2, len(data) + 1)]), 8, "a").shape == (8, 8, 3)
            ends.add("image")
        except LsclError as error:
            assert "image a:" in str(error)
            ends.add("line")
    assert ends == {"image", "line"} and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content", "decoded"),
    [
        ("a.txt", b"BMW and other cars", False), ("a.csv", b"P5,P6\n1,2\n", False), ("a.dng", "TIFF", False),
        ("a.tif", "TIFF", True), ("a.npy", b"\x93NUMPY", False), ("a.pdf", b"%PDF-1.4", False),
        ("IMG_1", "JPEG", True), ("a.dat", "PNG", True), ("a.JPG", b"", True),
    ],
)  # fmt: skip
def test_content_decides_what_is_an_image(tmp_path, colours, name, content, decoded):
    path = tmp_path / name
    colours.save(path, content) if isinstance(content, str) else path.write_bytes(content)
    assert is_picture(path) == decoded
