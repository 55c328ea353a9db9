"""What decides a number beside the config."""

import shutil

import pytest

from lscl.errors import LsclError
from lscl.experiments import origin
from lscl.experiments.run import prepare, run

MADE = {
    "data_digest": "d",
    "partition_digest": "p",
    "server_images_digest": None,
    "weights_digest": "w",
    "system_digest": None,
    "device": "cpu",
    "threads": 2,
}


def test_a_run_that_begins_and_its_record_have_the_same_origin(smoke):
    for method in ("fed_lscl", "fedavg", "fedmgp"):
        config = smoke(method=method)
        data, parts, system, _ = prepare(config)
        found = origin.origin_of_run(data, parts, system)
        assert found == origin.origin_of_record(run(config, quiet=True)) and set(found) == set(origin.ENTRIES)
        assert (found["weights_digest"] is None) == (method == "fedavg") and (
            found["server_images_digest"] is None
        ) == (method != "fedmgp")


def test_a_call_asks_for_what_it_says_and_leaves_the_rest_open(smoke):
    found = origin.requested_origin(smoke(device="cpu", threads=2))
    assert (
        found["device"] == "cpu"
        and found["threads"] == 2
        and set(found) == {"device", "threads", "data_digest", "partition_digest"}
    )
    assert "device" not in origin.requested_origin(
        smoke(device="auto")
    ) and "server_images_digest" in origin.requested_origin(smoke(method="fedmgp"))


def test_other_images_are_another_origin(smoke, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    first, second = sorted((tmp_path / "other" / "train" / "class00").iterdir())[:2]
    shutil.copy(first, second)
    one, other = origin.requested_origin(smoke()), origin.requested_origin(smoke(data_dir=tmp_path / "other"))
    assert one["data_digest"] != other["data_digest"]


@pytest.mark.parametrize("name", origin.ENTRIES)
def test_a_difference_is_one_line_with_what_to_do(name, one_line):
    origin.check_origin(MADE, MADE, "the record", "here")
    origin.check_origin(MADE, {}, "the record", "here")
    with pytest.raises(LsclError) as caught:
        origin.check_origin(MADE, {**MADE, name: "other"}, "the record", "here")
    one_line(
        caught,
        f"the record was made with {name} = {MADE[name]}, this call asks for {name} = other",
        origin.ENTRIES[name],
        "move here away",
    )


def test_on_a_gpu_the_threads_do_not_matter(one_line):
    origin.check_origin({**MADE, "device": "cuda"}, {"threads": 8}, "the record", "here")
    with pytest.raises(LsclError):
        origin.check_origin(MADE, {"threads": 8}, "the record", "here")
