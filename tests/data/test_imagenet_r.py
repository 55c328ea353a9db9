"""ImageNet-R from a small stand-in archive: download, split, and one digest from every source."""

import hashlib
import io
import json
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from lscl.config import experiment
from lscl.data import imagenet_r as module
from lscl.data.imagenet_r import imagenet_r, split
from lscl.data.sources import load
from lscl.errors import LsclError

COUNTS = (5, 7, 8, 10)  # images by class


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A tar of 4 classes and 30 images in no order, which is the official archive as long as the test lasts."""
    draw, files = np.random.default_rng(0), []
    for label, count in enumerate(COUNTS):
        for number in range(count):
            data = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (12 + number, 15, 3), np.uint8)).save(data, "PNG")
            files.append((f"imagenet-r/n{label:08d}/art_{number}.png", data.getvalue()))
    path = tmp_path / "official.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [("imagenet-r/README.txt", b"about"), *(files[i] for i in draw.permutation(len(files)))]:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CLASSES", len(COUNTS))
    monkeypatch.setattr(module, "IMAGES", sum(COUNTS))
    monkeypatch.setattr(module, "SIZE", path.stat().st_size)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def server(archive, monkeypatch):
    """The archive over HTTP; `limit`: bytes sent before the connection ends, `asked`: the ranges of the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            web.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and web.ranges else 0
            data = web.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: web.limit])

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.data, web.limit, web.asked, web.ranges = archive.read_bytes(), None, [], True
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{web.server_address[1]}/imagenet-r.tar")
    yield web
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stopped_download_goes_on(server, archive, tmp_path, ranges, one_line):
    server.limit, server.ranges = 5000, ranges
    with pytest.raises(LsclError) as caught:
        module.archive()
    one_line(caught, "the same command goes on")
    server.limit = None
    path = module.archive()
    assert path.read_bytes() == archive.read_bytes() and server.asked == [None, "bytes=5000-"]
    assert module.archive() == path and len(server.asked) == 2  # not a third time
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == ["imagenet-r.tar"]


def test_another_file_is_refused_and_deleted(server, tmp_path, one_line):
    server.data = bytes(len(server.data))
    with pytest.raises(LsclError) as caught:
        module.archive()
    one_line(caught, "not the official archive", module.SHA256)
    assert list((tmp_path / "cache" / "downloads").glob("*.tar*")) == list(
        (tmp_path / "cache" / "downloads").glob("*.lock")
    )


def test_without_a_connection_one_line_says_what_to_do(archive, monkeypatch, one_line):
    monkeypatch.setattr(module, "URL", archive.with_name("gone.tar").as_uri())
    with pytest.raises(LsclError) as caught:
        module.archive()
    one_line(caught, "ImageNet-R not downloaded", "--data-dir")


def test_a_full_disk_is_noticed_before_the_download(server, monkeypatch, one_line):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(LsclError) as caught:
        module.archive()
    one_line(caught, "GB are free", "LSCL_CACHE")
    assert server.asked == []


def test_the_official_values_are_those_of_the_real_archive():
    assert (module.SIZE, len(module.SHA256), module.CLASSES, module.IMAGES) == (2_191_079_936, 64, 200, 30_000)


def test_a_fifth_of_every_class_is_for_testing():
    labels = np.repeat(np.arange(4), COUNTS)
    test = split(labels)
    assert np.bincount(labels[test]).tolist() == [1, 1, 2, 2] and test.sum() == 30 // 5
    assert np.array_equal(split(labels), test)
    many = np.repeat(np.arange(200), np.r_[np.full(100, 51), np.full(100, 249)])
    assert split(many).sum() == 6000 and np.bincount(many[split(many)]).min() >= 10


def test_every_source_gives_the_same_images_and_the_split_is_kept(archive, tmp_path, places):
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "whole", filter="data")
    for number, path in enumerate(sorted((tmp_path / "whole" / "imagenet-r").glob("*/*"))):
        target = tmp_path / "halves" / ("train", "test")[number % 2] / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "whole" / "imagenet-r" / "n00000001" / "._art_0.png").write_bytes(b"left by a copy")
    (tmp_path / "packed").mkdir()
    shutil.copy(archive, tmp_path / "packed" / "imagenet-r.tar")
    digests = set()
    for name in ("whole", "whole/imagenet-r", "halves", "packed"):
        train, test = imagenet_r(tmp_path / name, 12)
        digests.add((train.digest, test.digest))
        shutil.rmtree(tmp_path / "cache" / "images")  # so that each source is really read
    assert len(digests) == 1
    assert (
        train.images.shape == (24, 12, 12, 3)
        and test.images.shape == (6, 12, 12, 3)
        and isinstance(train.images, np.memmap)
    )
    assert np.bincount(test.labels).tolist() == [1, 1, 2, 2] and train.classes == tuple(
        f"n{label:08d}" for label in range(4)
    )
    (saved,) = (places / "results" / "splits").iterdir()
    about = json.loads(saved.read_text(encoding="utf-8"))
    assert (about["images"], len(about["test"])) == (30, 6) and about["digest"] in saved.name


def test_it_is_decoded_once(archive, tmp_path, monkeypatch):
    (tmp_path / "packed").mkdir()
    shutil.copy(archive, tmp_path / "packed" / "imagenet-r.tar")
    config = experiment(
        profile="mini", dataset="imagenet_r", data_dir=tmp_path / "packed", images_per_class=4, test_images_per_class=1
    )
    data = load(config)
    assert len(data.train) == 16 and len(data.test) == 4 and data.train.images.shape[1] == config.image_size == 64
    monkeypatch.setattr(module, "square", lambda *_: pytest.fail("decoded again"))
    assert load(config).digest == data.digest


@pytest.mark.parametrize("damage", ["cut off", "an image fewer", "corrupt image", "empty folder"])
def test_a_damaged_local_copy_is_one_line(archive, tmp_path, damage, one_line):
    folder = tmp_path / "copy"
    folder.mkdir()
    if damage == "cut off":
        (folder / "imagenet-r.tar").write_bytes(archive.read_bytes()[:20_000])
    elif damage != "empty folder":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        image = folder / "imagenet-r" / "n00000001" / "art_3.png"
        image.unlink() if damage == "an image fewer" else image.write_bytes(b"no image")
    with pytest.raises(LsclError) as caught:
        imagenet_r(folder, 12)
    one_line(caught, folder, {"an image fewer": "29 images of 4 classes", "corrupt image": "art_3.png"}.get(damage, ""))
