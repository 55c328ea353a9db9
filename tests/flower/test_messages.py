"""How an exchange travels in Flower's records."""

import shutil

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from flwr.app import ArrayRecord

from lscl.errors import LsclError
from lscl.flower.messages import pack_config, unpack_config, unpack_record


@pytest.mark.parametrize("data", [b"", b"no tensors", bytes(8), b"\xff" * 100])
def test_bytes_that_are_no_payload_are_one_line(data, one_line):
    import numpy as np
    from flwr.app import Array

    with pytest.raises(LsclError) as caught:
        unpack_record(ArrayRecord({"payload": Array(np.frombuffer(data, np.uint8))}), "client 1")
    one_line(caught, "payload of client 1: cannot be read")


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
