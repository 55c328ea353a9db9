"""One run from a config to a record."""

import hashlib
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from tests_root import compared

from lscl.config import Experiment, experiment, fields
from lscl.data import sources
from lscl.data.glyphs import glyphs
from lscl.data.store import ImageSet
from lscl.errors import LsclError
from lscl.experiments import origin, records, sweeps
from lscl.experiments.progress import Progress
from lscl.experiments.run import (
    KEPT,
    RunBusy,
    claim,
    device_of,
    prepare,
    run,
    run_until,
    state_folder,
    state_folders,
    tasks_done,
)
from lscl.federation.checkpoint import read_state
from lscl.federation.loop import InProcess
from lscl.federation.metrics import MASKS, accuracy_tensor
from lscl.methods import METHODS
from lscl.models.vit import foundation
from lscl.publish import build


@pytest.mark.parametrize("name", METHODS)
def test_a_run_repeats_bit_for_bit(smoke, name, monkeypatch, tmp_path):
    torch.manual_seed(1)
    first = run(smoke(method=name), quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    torch.manual_seed(2)
    assert compared(run(smoke(method=name), quiet=True)) == compared(first)


def test_a_run_repeats_with_nothing_in_the_cache(smoke, monkeypatch, tmp_path):
    first = run(smoke(), quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    assert compared(run(smoke(), quiet=True)) == compared(first)


def test_another_seed_gives_another_result(smoke):
    one, other = (run(smoke(seed=seed), quiet=True) for seed in (42, 1999))
    assert one["accuracy"] != other["accuracy"] and one["partition_digest"] != other["partition_digest"]
    assert one["data_digest"] == other["data_digest"] and one["weights_digest"] == other["weights_digest"]


def test_a_finished_run_is_read_not_repeated(smoke):
    first = run(smoke(), quiet=True)
    assert run(smoke(), quiet=True) == first  # even the time it was finished
    assert records.find(smoke()) == first


def test_the_record_has_what_the_run_was(smoke, tree):
    config = smoke()
    record = run(config, quiet=True)
    data, parts, method, clients = prepare(config)
    assert (record["data_digest"], record["partition_digest"], record["weights_digest"]) == (
        data.digest,
        parts.digest,
        method.foundation.digest,
    )
    assert record["trained_parameters"] == [sum(p.numel() for p in client.model.parameters()) for client in clients]
    assert record["trained_images"] == 2 * sum(len(task.train) for stream in parts.tasks for task in stream)
    assert len(record["bytes_up"]) == len(record["bytes_down"]) == 4
    assert (
        set(record["seconds"]) == {"prepare", "train", "aggregate", "evaluate"}
        and record["peak_memory_mb"] > 0
        and record["cpu_seconds"] > 0
    )
    for k in range(3):
        assert sorted(map(int, record["per_class"][str(k)])) == sorted(parts.seen_classes(k, 1))
    assert records.accuracy(record, "task").shape == (2, 3, 2)


def test_the_accuracy_in_the_record_is_that_of_the_per_class_counts(smoke):
    record = run(smoke(), quiet=True)
    for row, mask in enumerate(("task", "seen", "all")):
        for k in range(3):
            classes = list(record["per_class"][str(k)].values())
            assert sum(one[row] for one in classes) / 6 == pytest.approx(
                records.accuracy(record, mask)[1, k].mean(), abs=1e-4
            )


def test_a_run_leaves_a_record_a_partition_and_no_state(smoke, places):
    record = run(smoke(), quiet=True)
    found = sorted(str(path.relative_to(places / "results")) for path in places.rglob("*") if path.is_file())
    partition = f"partitions/smoke--{smoke().source}--s42--{record['partition_digest']}.json"
    assert found == [partition, f"runs/smoke/{record['name']}.json"]


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit", "dualprompt"])
def test_a_run_that_stops_early_is_the_beginning_of_the_whole_one(smoke, name):
    whole, short = (run(smoke(method=name, stop_after=after), quiet=True) for after in (None, 1))
    for mask in whole["accuracy"]:
        assert short["accuracy"][mask] == [[client[:1] for client in task] for task in whole["accuracy"][mask][:1]]
    for key in ("bytes_up", "bytes_down"):
        assert short[key] == whole[key][:2]
    assert 2 * short["trained_images"] <= whole["trained_images"] + 6 * 9 and short["overrides"]["stop_after"] == 1
    assert sorted(map(int, short["per_class"]["0"])) == sorted(prepare(smoke())[1].seen_classes(0, 0))


def test_holdout_tests_on_training_images_that_are_not_trained_on(smoke):
    data, parts, _, clients = prepare(smoke(eval_split="holdout", private_classes=6, clients=2))
    for client in clients:
        assert client.test.images is data.train
        client.task = 0
        assert not set(client.test_index(0).tolist()) & set(client.train_index.tolist())
    record = run(smoke(eval_split="holdout", private_classes=6, clients=2), quiet=True)
    assert parts.holdout and records.accuracy(record, "task").shape == (2, 2, 2)


@pytest.mark.parametrize("name", METHODS.owners("block"))
@pytest.mark.parametrize("block", [3, 7])
def test_a_block_the_vit_does_not_have_is_one_line(smoke, name, block, one_line):
    with pytest.raises(LsclError) as caught:
        run(smoke(method=name, block=block), quiet=True)
    one_line(caught, f"block = {block}", "0 to 2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_line(smoke, one_line):
    assert device_of(smoke(device="auto")) == device_of(smoke(device="cpu")) == torch.device("cpu")
    with pytest.raises(LsclError) as caught:
        run(smoke(device="cuda"), quiet=True)
    one_line(caught, "device = cuda: no CUDA GPU found")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_found_and_gives_about_the_same_scores(smoke, monkeypatch, tmp_path):
    assert device_of(smoke(device="auto")).type == "cuda"
    on_gpu = run(smoke(device="cuda"), quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    on_cpu = run(smoke(device="cpu"), quiet=True)
    assert on_gpu["config_digest"] == on_cpu["config_digest"] and on_gpu["bytes_up"] == on_cpu["bytes_up"]


def test_the_gpu_of_a_mac_is_refused_in_one_line(smoke, one_line):
    with pytest.raises(LsclError) as caught:
        run(smoke(device="mps"), quiet=True)
    one_line(caught, "device = mps", "float64", "auto, cpu")


def test_unknown_parts_are_one_line(smoke, one_line):
    for values, words in (
        ({"cnn": "tinny"}, "unknown cnn 'tinny'"),
        ({"foundation": "tinny"}, "unknown foundation model 'tinny'"),
    ):
        with pytest.raises(LsclError) as caught:
            run(smoke(**values), quiet=True)
        one_line(caught, words, "did you mean 'tiny'?")


def test_a_results_folder_that_cannot_be_written_is_one_line(smoke, monkeypatch, tmp_path, one_line):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "file"))
    with pytest.raises(LsclError) as caught:
        run(smoke(), quiet=True)
    one_line(caught, "cannot write", tmp_path / "file")


def test_a_run_in_another_folder_writes_where_lscl_root_says(smoke, places, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(smoke(method="local_head"), quiet=True)
    assert os.listdir(tmp_path / "elsewhere") == [] and records.find(smoke(method="local_head")) is not None


def stopped(config, rounds):
    """Stop a run by Ctrl-C during the round after `rounds`."""
    with pytest.MonkeyPatch.context() as patch:
        left = [rounds]

        def round_ended(self, report):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        patch.setattr(Progress, "round", round_ended)
        with pytest.raises(KeyboardInterrupt):
            run(config, quiet=True)
    (folder,) = state_folders()
    (step,) = folder.glob("round-*")
    assert step.name == f"round-{rounds:05d}"
    return step


def test_a_run_in_folders_with_blanks_and_other_letters_is_the_same_run(smoke, monkeypatch, tmp_path):
    whole = run(smoke(), quiet=True)
    for name, folder in (("LSCL_ROOT", "Ergebnisse für mich"), ("LSCL_CACHE", "缓存 of mine")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    again = run(smoke(), quiet=True)
    assert compared(again) == compared(whole)
    assert (tmp_path / "Ergebnisse für mich" / "results" / "runs" / "smoke" / f"{again['name']}.json").exists()


def test_a_stop_says_how_to_go_on(smoke, capsys):
    stopped(smoke(), 2)
    assert capsys.readouterr().err.strip() == "stopped after round 2; the same command resumes there"


def test_a_run_begun_with_other_code_is_marked(smoke, monkeypatch):
    step = stopped(smoke(method="local_head"), 2)
    monkeypatch.setattr(records, "source", lambda: {"commit": None, "dirty": False, "code_digest": "0ther"})
    assert step.exists() and run(smoke(method="local_head"), quiet=True)["dirty"] is True
    assert records.all_records("smoke") == []


def test_a_run_that_another_process_is_at_is_waited_for(smoke, monkeypatch):
    config = smoke(method="local_head")
    state = records.folder("smoke") / "state" / config.name
    state.parent.mkdir(parents=True)
    lock = FileLock(f"{state}.lock")
    lock.acquire()
    with pytest.raises(RunBusy, match="another process is computing this run"):
        run(config, quiet=True, wait=False)
    asks, is_in, found, acquire = threading.Event(), threading.Event(), [], FileLock.acquire

    def note_asking(other):
        if other.lock_file == lock.lock_file:
            asks.set()
        return acquire(other)

    def note_being_in(folder):
        is_in.set()
        return read_state(folder)

    monkeypatch.setattr(FileLock, "acquire", note_asking)
    monkeypatch.setattr("lscl.experiments.run.read_state", note_being_in)
    thread = threading.Thread(target=lambda: found.append(run(config, quiet=True)), daemon=True)
    thread.start()
    assert asks.wait(60) and not is_in.wait(0.5)  # it would read the state at once
    lock.release()
    thread.join()
    assert is_in.is_set() and found == [records.find(config)] and state_folders() == []


def test_a_claim_that_ends_in_an_error_leaves_no_lock_and_lets_one_waiting_process_in(smoke):
    state, inside, most = state_folder(smoke()), [], []

    def fail():
        with pytest.raises(LsclError), claim(state, wait=True):
            inside.append(1)
            time.sleep(0.05)
            most.append(len(inside))
            inside.pop()
            raise LsclError("refused")

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4 and list(state.parent.iterdir()) == []


def test_a_run_that_is_refused_leaves_no_lock(smoke, places):
    with pytest.raises(LsclError):
        run(smoke(block=12), quiet=True)
    assert not list(places.rglob("*.lock"))


def test_a_disk_without_locks_is_one_line(smoke, monkeypatch, one_line):
    def acquire(lock):
        raise NotImplementedError("this file system has no flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(LsclError) as caught:
        run(smoke(method="local_head"), quiet=True)
    one_line(caught, "cannot write", ".lock: this file system has no flock")


def test_an_observer_hears_of_every_finished_round_once_it_is_saved(smoke):
    config, heard = smoke(method="fedavg"), []

    def hear(of, reports):
        saved = [path for path in state_folders() if any(path.iterdir())]
        heard.append((of.digest, [(one.task, one.round) for one in reports], len(saved)))

    record = run(config, quiet=True, on_round=hear)
    rounds = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert heard == [(config.digest, rounds[:number], 1) for number in (1, 2, 3, 4)]
    assert run(config, quiet=True, on_round=hear) == record and len(heard) == 4  # read, not computed


def test_an_observer_that_fails_is_one_line_and_loses_nothing(smoke, one_line, monkeypatch, tmp_path):
    def fail(config, reports):
        if len(reports) == 3:
            raise ZeroDivisionError("division by zero\nmore")

    with pytest.raises(LsclError) as caught:
        run(smoke(method="fedavg"), quiet=True, on_round=fail)
    one_line(caught, "on_round: ZeroDivisionError: division by zero", "are saved")
    heard = []
    record = run(smoke(method="fedavg"), quiet=True, on_round=lambda config, reports: heard.append(len(reports)))
    assert heard == [4]
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    assert compared(run(smoke(method="fedavg"), quiet=True)) == compared(record)


def test_other_values_do_not_go_on_from_the_state(smoke):
    stopped(smoke(), 2)
    other = run(smoke(lr=2e-3), quiet=True)
    assert other["dirty"] is False and len(state_folders()) == 1


# ---- two inputs never share a record


@pytest.fixture
def other_tree(tree, tmp_path):
    """A copy of `tree` in which one training image is another one."""
    shutil.copytree(tree, tmp_path / "other_tree")
    path = next((tmp_path / "other_tree" / "train" / "class00").iterdir())
    Image.new("RGB", (16, 16), (250, 0, 250)).save(path)
    return tmp_path / "other_tree"


def test_two_folders_stand_side_by_side(smoke, other_tree, places):
    one, other = smoke(method="local_head"), smoke(method="local_head", data_dir=other_tree)
    first, second = run(one, quiet=True), run(other, quiet=True)
    assert first["data_digest"] != second["data_digest"] and first["name"] != second["name"]
    for config, record in ((one, first), (other, second)):
        assert (
            record["name"].startswith(f"folder-{config.folder_digest[:8]}--local_head--")
            and config.source == f"folder-{config.folder_digest[:8]}"
        )
        assert run(config, quiet=True) == records.find(config) == record
    assert sorted(path.name.split("--s42")[0] for path in (places / "results" / "partitions").iterdir()) == sorted(
        f"smoke--{one.source}" for one in (one, other)
    )


def test_the_same_images_elsewhere_are_the_same_run(smoke, tree, tmp_path):
    first = run(smoke(method="local_head"), quiet=True)
    shutil.copytree(tree, tmp_path / "moved")
    assert run(smoke(method="local_head", data_dir=tmp_path / "moved"), quiet=True) == first


def test_a_run_that_was_stopped_does_not_go_on_with_another_folder(smoke, other_tree):
    stopped(smoke(method="local_head"), 2)
    other = run(smoke(method="local_head", data_dir=other_tree), quiet=True)
    assert len(state_folders()) == 1  # that of the first folder is still there
    fresh = run(smoke(method="local_head"), quiet=True)
    assert state_folders() == [] and fresh["data_digest"] != other["data_digest"]


def test_a_folder_that_is_gone_is_one_line_even_if_there_is_a_record(smoke, tree, tmp_path, one_line):
    shutil.copytree(tree, tmp_path / "gone")
    config = smoke(method="local_head", data_dir=tmp_path / "gone")
    run(config, quiet=True)
    shutil.rmtree(tmp_path / "gone")
    for call in (
        lambda: run(config, quiet=True),
        lambda: records.find(config),
        lambda: smoke(method="local_head", data_dir=tmp_path / "gone"),
    ):
        with pytest.raises(LsclError) as caught:
            call()
        one_line(caught, "no data folder", tmp_path / "gone")


def test_images_that_change_between_config_and_run_are_one_line(smoke, other_tree, tree, one_line):
    config = smoke(method="local_head", data_dir=other_tree)
    shutil.rmtree(other_tree)
    shutil.copytree(tree, other_tree)
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True)
    one_line(caught, other_tree, "holds other images", smoke().folder_digest, f"folder_digest = {config.folder_digest}")


def test_a_record_of_other_images_of_a_named_data_set_is_one_line(tmp_path, one_line, monkeypatch):
    config = experiment(profile="smoke", method="local_head", data_dir=tmp_path)  # glyphs, which need no folder
    record = run(config, quiet=True)
    origin._images.cache_clear()
    monkeypatch.setattr(
        sources, "glyphs", lambda: tuple(ImageSet(255 - one.images, one.labels, one.classes) for one in glyphs())
    )
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True)
    one_line(
        caught,
        f"data_digest = {record['data_digest']}",
        "this call asks for data_digest",
        "give the images that it was made from",
    )
    origin._images.cache_clear()


# ---- kept payloads


@pytest.fixture
def kept(smoke, tmp_path):
    """A finished run, and the file beside its kept payloads."""
    config = smoke(method="fed_ncm")
    run(config, quiet=True, keep_payloads=tmp_path)
    return config, tmp_path / config.name / KEPT


def change_kept(path, **changes):
    found = json.loads(path.read_text("utf-8"))
    found["finished"] = changes.pop("finished", found["finished"])
    path.write_text(json.dumps({**found, "origin": {**found["origin"], **changes}}), "utf-8")


def test_payloads_of_other_images_are_not_taken_for_those_of_a_finished_run(monkeypatch, tmp_path, one_line):
    config = experiment(profile="smoke", method="fed_ncm")
    first = run(config, quiet=True, keep_payloads=tmp_path)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "elsewhere"))
    other = lambda: tuple(ImageSet(255 - one.images, one.labels, one.classes) for one in glyphs())
    monkeypatch.setattr(sources, "glyphs", other)
    second = run(config, quiet=True)
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True, keep_payloads=tmp_path)
    digests = f"data_digest = {first['data_digest']}, not {second['data_digest']}"
    one_line(caught, tmp_path / config.name, "this run is finished", digests, "LSCL_ROOT")


@pytest.mark.parametrize("name", [*origin.ENTRIES, "code_digest"])
def test_payloads_of_another_origin_are_not_those_of_the_run(kept, name, one_line):
    config, path = kept
    run(config, quiet=True, keep_payloads=path.parents[1])
    change_kept(path, **{name: "other"})
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True, keep_payloads=path.parents[1])
    one_line(caught, path.parent, f"those there were made with {name} = other, not ")


def test_payloads_of_a_stopped_run_are_not_those_of_a_finished_one(kept, one_line):
    config, path = kept
    change_kept(path, finished=False)
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True, keep_payloads=path.parents[1])
    one_line(caught, path.parent, "those there are of a run that was stopped")
    path.write_text("{}", "utf-8")
    with pytest.raises(LsclError) as caught:
        run(config, quiet=True, keep_payloads=path.parents[1])
    one_line(caught, path, "Field required")


def test_a_run_that_goes_on_keeps_beside_its_own_payloads_only(smoke, tmp_path, one_line):
    config = smoke(method="fed_ncm")

    def stop(*_):
        raise LsclError("stopped")

    with pytest.raises(LsclError, match="stopped"):
        run(config, quiet=True, keep_payloads=tmp_path, on_round=stop)
    path = tmp_path / config.name / KEPT
    begun = json.loads(path.read_text("utf-8"))
    assert not begun["finished"] and path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
    for name in ("data_digest", "threads", "code_digest"):
        change_kept(path, **{name: "other"})
        with pytest.raises(LsclError) as caught:
            run(config, quiet=True, keep_payloads=tmp_path)
        one_line(caught, path.parent, "this run has 1 finished rounds", f"made with {name} = other, not ")
        path.write_text(json.dumps(begun), "utf-8")
    run(config, quiet=True, keep_payloads=tmp_path)
    assert json.loads(path.read_text("utf-8")) == {**begun, "finished": True}


# ---- threads


def test_other_threads_are_one_line_and_none_given_reads_what_there_is(smoke, one_line):
    record = run(smoke(method="local_head", threads=2), quiet=True)
    assert record["config"]["threads"] == 2
    assert (
        run(smoke(method="local_head"), quiet=True) == run(smoke(method="local_head", threads=2), quiet=True) == record
    )
    with pytest.raises(LsclError) as caught:
        run(smoke(method="local_head", threads=1), quiet=True)
    one_line(caught, "threads = 2", "this call asks for threads = 1", "leave threads out", f"{record['name']}.json")


def test_whatever_loading_reads_of_a_config_decides_which_images_are_compared(smoke, monkeypatch):
    found, plain = set(), Experiment.__getattribute__
    config = smoke()
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "__getattribute__", lambda self, name: found.add(name) or plain(self, name))
        for one in (config, experiment(), experiment(dataset="cifar100", data_dir="nowhere")):
            try:
                sources.load(one)
            except LsclError:
                assert one.dataset == "cifar100"
    assert found & set(fields()) <= set(origin.IMAGES)


def test_threads_left_open_are_those_of_the_profile(smoke, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(smoke(method="local_head"), quiet=True)["config"]["threads"] == 1 == torch.get_num_threads()
    assert experiment().cpu_threads == 2 and experiment(profile="mini", threads=5).cpu_threads == 5


@pytest.mark.parametrize(
    ("said", "threads"), [("7", 7), (" 3,2", 3), ("", 2), ("0", 2), ("-1", 2), ("many", 2), ("²", 2)]
)
def test_threads_left_open_are_those_that_openmp_is_told(smoke, monkeypatch, said, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert experiment().cpu_threads == threads
    assert experiment(threads=5).cpu_threads == 5 and smoke().cpu_threads == 1


def test_a_stopped_run_goes_on_with_its_threads_or_not_at_all(smoke, one_line):
    step = stopped(smoke(threads=2), 2)
    with pytest.raises(LsclError) as caught:
        run(smoke(threads=1), quiet=True)
    one_line(caught, "saved state", "threads = 2", "this call asks for threads = 1", step.parent)
    assert step.exists()
    record = run(smoke(), quiet=True)
    assert record["config"]["threads"] == 2 == torch.get_num_threads()


ORIGINS = {"device": "cuda", "weights_digest": "0ther", "partition_digest": "0ther", "data_digest": "0ther"}


@pytest.mark.parametrize("name", ORIGINS)
def test_a_stopped_run_of_another_origin_does_not_go_on(smoke, name, monkeypatch, one_line):
    with pytest.MonkeyPatch.context() as patch:
        made = origin.origin_of_run
        patch.setattr(origin, "origin_of_run", lambda *about: made(*about) | {name: ORIGINS[name]})
        step = stopped(smoke(), 1)
    before = sorted(path.name for path in step.iterdir())
    with pytest.raises(LsclError) as caught:
        run(smoke(), quiet=True)
    one_line(caught, f"{name} = {ORIGINS[name]}", f"this call asks for {name} = ", step.parent)
    assert sorted(path.name for path in step.iterdir()) == before


def test_a_record_of_another_device_is_one_line_only_if_that_one_is_asked_for(smoke, one_line):
    record = run(smoke(method="local_head", device="cpu"), quiet=True)
    assert record["device"] == "cpu" and origin.origin_of_record(record)["device"] == "cpu"
    records.save({**json.loads(json.dumps(record)), "device": "cuda", "config": {**record["config"], "threads": 7}})
    assert run(smoke(method="local_head"), quiet=True)["device"] == "cuda"
    assert (
        run(smoke(method="local_head", threads=1), quiet=True)["config"]["threads"] == 7
    )  # on a GPU they do not matter
    with pytest.raises(LsclError) as caught:
        run(smoke(method="local_head", device="cpu"), quiet=True)
    one_line(caught, "device = cuda", "this call asks for device = cpu")


def test_a_changed_weight_of_the_shipped_model_is_another_origin(smoke, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file({name: value + 0.01 for name, value in foundation("tiny", None).vit.state_dict().items()}, path)
    method = lambda **values: origin.origin_of_run(*prepare(smoke(method="local_head", **values))[:3])
    assert method()["weights_digest"] != method(weights=path)["weights_digest"]


# ---- images that the optimisers have seen


def images_of(smoke, **values):
    record = run(smoke(**values), quiet=True)
    return record["trained_images"], record["optimised_images"]


@pytest.mark.parametrize("method", ["local_head", "fedavg", "fedprox", "l2p", "pilora", "lorm"])
def test_images_of_the_tasks_are_counted_once_per_pass(smoke, method):
    own, seen = images_of(smoke, method=method)
    assert own == seen > 0


def test_kept_images_are_counted(smoke):
    """At most two kept images of each of a client's first three classes, in two rounds of the second task."""
    data, parts, *_ = prepare(smoke())
    kept = np.minimum(parts.counts(data.train.labels, len(data.classes))[:, 0], 2).sum()
    own, seen = images_of(smoke, method="glfc", glfc_memory=6)
    assert seen == own + 2 * kept
    own, seen = images_of(smoke, continual="none")
    assert own == seen
    for continual in ("consistency", "replay"):
        own, seen = images_of(smoke, continual=continual)
        assert own < seen <= 2 * own


def test_made_images_are_counted(smoke):
    """Batches of 8 in the second task; MFCL: 8 made ones in each, and the generator's 5 steps of 8."""
    parts = prepare(smoke())[1]
    batches = 2 * sum(
        len(range(0, len(stream[1].train), 8)) - (len(stream[1].train) % 8 == 1) for stream in parts.tasks
    )
    own, seen = images_of(smoke, method="mfcl")
    assert seen == own + 8 * batches + 5 * 8
    own, seen = images_of(smoke, method="target", target_warmup=1)
    replayed = 0
    for count in (len(stream[1].train) for stream in parts.tasks):
        full, rest = divmod(count, 8)
        sizes = [8] * (full - 1) + [9] if rest == 1 else [8] * full + [rest]
        replayed += 2 * sum(round(size * 500 / 128) for size in sizes)
    # 500 beside 128 own ones; 3 rounds of 3 steps; behind the second round 2 steps of the student
    assert seen == own + replayed + 3 * 3 * 8 + 2 * 8


def test_the_servers_images_are_counted(smoke):
    """14 images in 2 epochs of 4 rounds."""
    own, seen = images_of(smoke, method="fedmgp")
    assert seen == own + 4 * 2 * 14


def test_images_seen_before_a_stop_are_counted(smoke):
    stopped(smoke(method="mfcl"), 3)
    own, seen = images_of(smoke, method="mfcl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSCL_ROOT", os.environ["LSCL_ROOT"] + "2")
        assert images_of(smoke, method="mfcl") == (own, seen)


def test_glyphs_run_from_the_smoke_profile():
    record = run(experiment(profile="smoke", method="local_head"), quiet=True)
    assert record["dataset"] == "glyphs" and record["name"].startswith("glyphs--local_head--s42--")


def test_a_run_with_a_local_checkpoint_records_name_and_digests(smoke, tmp_path):
    path = tmp_path / "tiny.safetensors"
    drawn = foundation("tiny", None)
    save_file({name: value + 0.01 for name, value in drawn.vit.state_dict().items()}, path)
    record = run(smoke(method="local_head", weights=path), quiet=True)
    assert (
        record["config"]["foundation"] == "tiny"
        and record["config"]["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert record["weights_digest"] == foundation("tiny", None, weights=path).digest != drawn.digest
    assert str(tmp_path) not in json.dumps(record)


def test_runs_that_cut_the_vit_elsewhere_share_a_bounded_cache(smoke, monkeypatch, tmp_path):
    """Two splits of 17 tokens of width 32 have room, or of one token, not both: each run makes room for itself."""
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    whole = [run(smoke(method=method, seed=3), quiet=True) for method in ("local_lora", "pilora")]
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "bounded"))
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "again"))
    monkeypatch.setenv("LSCL_CACHE_GB", str((84 + 28) * 17 * 32 * 4 * 1.1 / 1e9))
    again = [run(smoke(method=method, seed=3), quiet=True) for method in ("local_lora", "pilora")]
    assert [compared(one) for one in again] == [compared(one) for one in whole]
    assert len([path for path in (tmp_path / "bounded" / "prefix").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("name", ["fedavg", "fed_lscl", "glfc", "target", "mfcl"])
def test_a_cnn_that_sees_larger_images_runs_in_every_system_that_has_one(name, smoke):
    """16 pixels as decoded, 20 for the CNN: what a server makes and sends for it has 20 too."""
    record = run(smoke(method=name, cnn_size=20), quiet=True)
    plain = run(smoke(method=name), quiet=True)
    assert torch.isfinite(torch.as_tensor(records.accuracy(record, "task"))[-1]).all()
    larger = sum(map(sum, record["bytes_down"])) > sum(map(sum, plain["bytes_down"]))
    assert larger == (name in ("target", "mfcl"))


def test_a_cnn_that_does_not_take_the_images_is_one_line_before_anything_is_computed(smoke, monkeypatch, one_line):
    monkeypatch.setattr("lscl.experiments.run.load", lambda config: pytest.fail("data are read first"))
    with pytest.raises(LsclError) as caught:
        run(smoke(cnn="tiny,inception_v3"), quiet=True)
    one_line(caught, "cnn = 'inception_v3'", "16 pixels")


@pytest.mark.parametrize("values", [{"cnn": "tiny"}, {"cnn": "small, mini_vgg"}])
def test_a_pre_trained_cnn_without_weights_is_one_line_before_anything_is_computed(
    smoke, monkeypatch, one_line, values
):
    monkeypatch.setattr("lscl.experiments.run.load", lambda config: pytest.fail("data are read first"))
    with pytest.raises(LsclError) as caught:
        run(smoke(**values, image_size=32, cnn_start="pretrained"), quiet=True)
    one_line(caught, "no pre-trained weights", "small")


def test_a_cache_bound_that_is_no_number_is_said_even_if_the_record_is_there(smoke, monkeypatch, one_line):
    run(smoke(method="local_head"), quiet=True)
    monkeypatch.setenv("LSCL_CACHE_GB", "many")
    for command in (
        lambda: run(smoke(method="local_head"), quiet=True),
        lambda: sweeps.sweep("table1", {"profile": "smoke"}, [42], list_only=True),
        lambda: build.reproduce("smoke"),
    ):
        with pytest.raises(LsclError) as caught:
            command()
        one_line(caught, "LSCL_CACHE_GB = 'many'")


# ---- the beginning of a run


@pytest.mark.parametrize("name", ["fed_lscl", "fedavg_vit", "dualprompt", "target"])
def test_a_run_that_rests_behind_a_task_goes_on_to_the_same_end(smoke, name, monkeypatch, tmp_path):
    whole = run(smoke(method=name), quiet=True)
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "rested"))
    saved = run_until(smoke(method=name), 1, quiet=True)
    (folder,) = state_folders()
    assert saved.folder == folder and tasks_done(saved) == 1 and records.all_records("smoke") == []
    counts = [[saved.rounds[-1]["scores"][str(k)] for k in range(3)]]
    seen = accuracy_tensor(counts, 3)[MASKS.index("seen")]
    assert seen[0, :, 0] == pytest.approx(records.accuracy(whole, "seen")[0, :, 0], abs=1e-3)
    assert compared(run(smoke(method=name), quiet=True)) == compared(whole) and state_folders() == []


def test_a_beginning_that_is_there_is_read_and_one_that_was_stopped_goes_on(smoke, monkeypatch):
    config = smoke(method="local_head")
    stopped(config, 1)
    assert tasks_done(run_until(config, 1, quiet=True)) == 1
    monkeypatch.setattr(InProcess, "ask", lambda *_: pytest.fail("computed again"))
    assert len(run_until(config, 1, quiet=True).rounds) == 2


@pytest.mark.parametrize("task", [0, 2, 3])
def test_a_beginning_ends_before_the_last_task(smoke, task, one_line):
    with pytest.raises(LsclError) as caught:
        run_until(smoke(), task, quiet=True)
    one_line(caught, f"task = {task}: a run of 2 tasks has its beginning after an earlier one")
