"""How an exchange travels in Flower's records."""

import io
import shutil

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from flwr.app import Array, ArrayRecord

from lscl.errors import LsclError
from lscl.flower.messages import pack_config, unpack_config, unpack_record


@pytest.mark.parametrize("data", [b"", b"no tensors", bytes(8), b"\xff" * 100])
def test_bytes_that_are_no_payload_are_one_line(data, one_line):
    with pytest.raises(LsclError) as caught:
        unpack_record(ArrayRecord({"payload": Array(np.frombuffer(data, np.uint8))}), "client 1")
    one_line(caught, "payload of client 1: cannot be read")


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(1))
    return file.getvalue()


def npy(header):
    """The beginning of a file of one array, with any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (npz(), "AttributeError"),
        (b"PK\x03\x04" + bytes(40), "BadZipFile"),
        (npy(b"{'descr': (\n"), "TokenError"),
        (npy(b"if 1:\n  a\n b\n"), "IndentationError"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"), "ValueError"),
        (npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,), }\n"), "MemoryError"),
        (b"", "EOFError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_numpy_cannot_make_is_one_line(data, kind, one_line):
    sent = Array(dtype="uint8", shape=(len(data),), stype="numpy.ndarray", data=data)
    with pytest.raises(LsclError) as caught:
        unpack_record(ArrayRecord({"payload": sent}), "client 1")
    one_line(caught, f"payload of client 1: cannot be read ({kind}: ")


def test_the_config_travels_whole_but_for_the_places_of_a_machine(smoke, monkeypatch, tree):
    config = smoke(o2d_upload="gram", stop_after=1)
    assert str(tree) not in pack_config(config)
    monkeypatch.setenv("LSCL_DATA_DIR", str(tree))
    assert unpack_config({"experiment": pack_config(config)}) == config


def test_a_node_with_other_images_says_so(smoke, tree, tmp_path, monkeypatch, one_line):
    config = smoke()
    shutil.copytree(tree, tmp_path / "other")
    next((tmp_path / "other" / "train" / "class00").iterdir()).unlink()
    monkeypatch.setenv("LSCL_DATA_DIR", str(tmp_path / "other"))
    with pytest.raises(LsclError) as caught:
        unpack_config({"experiment": pack_config(config)})
    one_line(caught, tmp_path / "other", "holds other images", config.folder_digest)
