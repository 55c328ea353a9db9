"""Kept models read again: they predict as they were tested."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from far_device import FAR, FarDevice, to_far
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import call
from test_run import stopped
from tests_root import compared

import lscl
from lscl.data.picture import read_picture
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.experiments.kept_models import model_path
from lscl.experiments.prediction import Prediction, load_model
from lscl.experiments.run import build_experiment, run
from lscl.federation.metrics import MASKS
from lscl.methods import METHODS
from lscl.models.vit import foundation


def accuracies(model, config):
    """Percent of each client on the test images of its tasks, by mask: (masks, clients, tasks)."""
    data, parts, *_ = build_experiment(config)
    tested, found = data.train if parts.holdout else data.test, np.zeros((3, config.clients, config.tasks_run))
    for k, stream in enumerate(parts.tasks):
        for task, part in enumerate(stream[: config.tasks_run]):
            index = list(part.test)
            for row, mask in enumerate(MASKS):
                labels = model.predict(tested.images[index], k, mask, task if mask == "task" else None).labels
                found[row, k, task] = 100 * (labels == tested.labels[index]).mean()
    return found


def recorded(record):
    return np.array([record["accuracy"][mask][-1] for mask in MASKS], float)


def look_from_far(model, images):
    """What every client sees when networks and batches are on another device, and what stayed on the CPU for that.

    State and server stay there, as a file is read to it; what a system needs of them goes over to the device.
    """
    method = model.method
    method.device = FAR
    for network in [*filter(None, [method.foundation]), *(client.model for client in model.clients)]:
        to_far(network)
    found = []
    with FarDevice() as device, torch.no_grad():
        for client in model.clients:
            client.train = client.test = replace(client.test, device=FAR)
            method.prepare_test(client)
            client.model.eval()
            found.append(model.predict(images, client.id).logits)
    return np.stack(found), [where for what, where in device.waits if "on the CPU" in what]


@pytest.mark.parametrize("name", METHODS)
def test_kept_models_reach_what_the_record_says_on_any_device(smoke, name):
    config = smoke(method=name, rounds=1)
    record = run(config, quiet=True, keep_model=True)
    model = load_model(model_path(record))
    assert accuracies(model, config) == pytest.approx(recorded(record), abs=1e-5)
    assert model.card.accuracy == {
        mask: pytest.approx(recorded(record)[row].mean(), abs=1e-3) for row, mask in enumerate(MASKS)
    }
    images = np.random.default_rng(0).integers(0, 256, (3, config.image_size, config.image_size, 3), dtype=np.uint8)
    here = np.stack([model.predict(images, k).logits for k in range(config.clients)])
    far, left_behind = look_from_far(load_model(record), images)
    assert left_behind == [] and np.allclose(far, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"activations": "bf16"},
        {"stop_after": 1},
        {"block": 0, "cnn_size": 8},
        {"eval_split": "holdout", "private_classes": 6, "clients": 2},
        {"threads": 2},
        {"collaboration": "cnn"},
        {"method": "l2p", "prompt_batchwise": True, "activations": "bf16"},
    ],
)
def test_kept_models_of_other_configs(smoke, values):
    config = smoke(rounds=1, **values)
    record = run(config, quiet=True, keep_model=True)
    assert accuracies(load_model(record), config) == pytest.approx(recorded(record), abs=1e-5)


@pytest.fixture
def kept(smoke):
    """A config, its record and the path of its models."""
    config = smoke(method="fedavg", rounds=1, epochs=1)
    record = run(config, quiet=True, keep_model=True)
    return config, record, model_path(record)


def test_a_run_with_kept_models_has_an_equal_record(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("LSCL_ROOT", str(tmp_path / "other"))
    plain = run(kept[0], quiet=True)
    assert compared(plain) == compared(kept[1])
    assert not model_path(plain).exists()


def test_models_are_found_by_file_card_and_record(kept):
    config, record, path = kept
    image = np.zeros((16, 16, 3), np.uint8)
    beside = records.folder("smoke") / f"{record['name']}.json"
    places = [path, str(path), path.with_suffix(".json"), beside, record]
    found = [load_model(place).predict(image).logits for place in places]
    assert all((one == found[0]).all() for one in found)
    assert lscl.load_model is load_model
    assert repr(load_model(path)).startswith(f"KeptModel({record['name']}: 3 clients, 14 classes")


def test_a_record_without_models_gets_them_and_stays(smoke, capsys):
    config = smoke(method="fedavg", rounds=1, epochs=1)
    record = run(config, quiet=True)
    assert run(config, keep_model=True) == record
    assert "computed again for them" in capsys.readouterr().err
    model = load_model(record)
    assert model.card.equal_to_record and accuracies(model, config) == pytest.approx(recorded(record), abs=1e-5)
    written = model_path(record).stat().st_mtime_ns
    assert run(config, quiet=True, keep_model=True) == record and model_path(record).stat().st_mtime_ns == written


def test_models_of_a_record_of_other_code_say_so(smoke, capsys):
    config = smoke(method="fedavg", rounds=1, epochs=1)
    record = run(config, quiet=True)
    path = records.folder("smoke") / f"{record['name']}.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["accuracy"]["seen"][-1][0][0] = 99.0
    path.write_text(json.dumps(raw), "utf-8")
    found = run(config, keep_model=True)
    assert not load_model(found).card.equal_to_record and "their accuracies are apart" in capsys.readouterr().err


def test_a_run_that_was_stopped_keeps_its_models(smoke):
    config = smoke()
    stopped(config, 2)
    record = run(config, quiet=True, keep_model=True)
    assert accuracies(load_model(record), config) == pytest.approx(recorded(record), abs=1e-5)


def test_a_run_that_was_stopped_behind_its_last_test_keeps_them_too(smoke):
    config = smoke(method="fedavg", rounds=1, epochs=1)
    stopped(config, 2)
    record = run(config, quiet=True, keep_model=True)
    assert accuracies(load_model(record), config) == pytest.approx(recorded(record), abs=1e-5)


def test_scores_are_those_of_the_classes_that_compete(kept):
    model = load_model(kept[2])
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for task in (None, 1):
        found, known = model.predict(images, 2, task=task), model.known_classes(2, task)
        assert found.scores.sum(1) == pytest.approx(np.ones(5))
        assert {model.classes[label] for label in np.flatnonzero(found.scores[0])} == set(known)
        assert found.best(3, 50)[0][0] == found.names[3] and len(found.best(3, 50)) == len(known)
        assert sum(score for _, score in found.best(3, 50)) == pytest.approx(1)
    assert len(known) == 3 and len(model.predict(images[0], mask="all").best(count=99)) == 14


def test_prediction_of_any_logits():
    found = Prediction(
        np.zeros((2, 1, 1, 3), np.uint8), np.array([[1e5, 0, -np.inf], [-900, -900, -np.inf]]), ("a", "b", "c")
    )
    assert found.names == ["a", "a"] and found.scores.tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    assert found.best(1) == [("a", 0.5), ("b", 0.5)]


def test_pictures_come_in_many_ways(kept, tree, tmp_path):
    model, path = load_model(kept[2]), next((tree / "test" / "class03").iterdir())
    pixels = np.asarray(Image.open(path))
    wanted = model.predict(pixels).logits
    ways = [path, str(path), [path], Image.open(path), [pixels], (pixels,), pixels[None], torch.tensor(pixels)]
    for way in ways:
        assert (model.predict(way).logits == wanted).all()
    Image.open(path).resize((40, 50)).save(tmp_path / "larger.png")
    assert model.predict([tmp_path / "larger.png", path]).images.shape == (2, 16, 16, 3)


def test_a_picture_is_the_same_by_its_path_and_opened(kept, tmp_path):
    """Also where its numbers are not those that the networks see."""
    model, path = load_model(kept[2]), tmp_path / "a.png"
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for image in (Image.fromarray(grey), Image.new("RGBA", (16, 16), (9, 9, 9, 9)), Image.fromarray(grey >> 8)):
        image.save(path, exif=turned)
        assert np.array_equal(model.predict(Image.open(path)).images, model.predict(path).images)


def test_many_images_go_through_in_batches(kept, monkeypatch):
    model, images = load_model(kept[2]), np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), np.uint8)
    whole = model.predict(images).logits
    monkeypatch.setattr("lscl.experiments.prediction.BATCH", 3)
    assert model.predict(images).logits == pytest.approx(whole, abs=1e-4)


def test_the_threads_of_the_caller_stay(smoke):
    record = run(smoke(method="fedavg", threads=2), quiet=True, keep_model=True)
    torch.set_num_threads(1)
    load_model(record).predict(np.zeros((16, 16, 3), np.uint8))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": np.zeros((2, 16, 16, 3))}, "wanted are (n, H, W, 3)"),
        ({"images": np.zeros((16, 16), np.uint8)}, "wanted are (n, H, W, 3)"),
        ({"images": np.zeros((0, 16, 16, 3), np.uint8)}, "wanted are (n, H, W, 3)"),
        ({"images": []}, "give an array, a picture, a path"),
        ({"images": 5}, "give an array, a picture, a path"),
        ({"images": [5]}, "image 0 is a int"),
        ({"images": Image.new("RGB", (0, 5))}, "empty image 0: 0 x 5 pixels"),
        ({"images": [np.zeros((0, 5, 3), np.uint8)]}, "image 0 has shape (0, 5, 3)"),
        ({"images": [np.zeros((5, 5, 3))]}, "image 0 has shape (5, 5, 3) and type float64"),
        ({"images": "no/such.png"}, "no/such.png"),
        ({"images": __file__}, "corrupt image"),
        ({"client": 3}, "client = 3: there are the clients 0 to 2"),
        ({"client": -1}, "client = -1"),
        ({"client": True}, "client = True"),
        ({"client": 1.0}, "client = 1.0"),
        ({"task": 2}, "task = 2: client 0 has the tasks 0 to 1"),
        ({"task": -1}, "task = -1"),
        ({"mask": "task"}, "task = None"),
        ({"mask": "all", "task": 0}, "task = 0: every class competes with mask = all"),
        ({"mask": "none"}, "mask = 'none': allowed are task, seen, all"),
    ],
)
def test_a_question_that_is_none(kept, given, words, one_line):
    with pytest.raises(LsclError) as caught:
        load_model(kept[2]).predict(**{"images": np.zeros((16, 16, 3), np.uint8), **given})
    one_line(caught, words)


def rewritten(card, **values):
    return lambda path: path.with_suffix(".json").write_text(json.dumps({**card, **values}), "utf-8")


def as_folder(path):
    path.unlink(), path.mkdir()


def huge(path):
    with open(path, "r+b") as file:
        file.truncate(2**40)


SPOILED = {
    "no file": (lambda path: path.unlink(), "there is no"),
    "no card": (lambda path: path.with_suffix(".json").unlink(), "the card of"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its card says"),
    "flipped": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), "SHA-256"),
    "huge": (huge, "its card says"),
    "empty": (lambda path: path.write_bytes(b""), "its card says"),
    "a folder": (as_folder, "cannot read the models"),
    "card: no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "no card of kept models"),
    "card: a list": (lambda path: path.with_suffix(".json").write_text("[]"), "no card of kept models"),
    "card: deep": (lambda path: path.with_suffix(".json").write_text("[" * 10**5), "no card of kept models"),
    "card: binary": (lambda path: path.with_suffix(".json").write_bytes(b"\xff\x00"), "no card of kept models"),
    "card: a folder": (
        lambda path: (path.with_suffix(".json").unlink(), path.with_suffix(".json").mkdir()),
        "the card of",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_file_is_one_line(kept, how, one_line):
    spoil, words = SPOILED[how]
    spoil(kept[2])
    for place in (kept[2], kept[2].with_suffix(".json")):
        with pytest.raises(LsclError) as caught:
            load_model(place)
        one_line(caught, words if how != "no file" or place.suffix != ".json" else "there is no")


CARDS = {
    "another schema": ({"schema": "lscl model 2"}, "schema"),
    "an unknown entry": ({"more": 1}, "more"),
    "too large": ({"bytes": 2**40}, "bytes"),
    "an unknown system": ({"config": {"method": "nobody"}}, "is not registered here"),
    "no config": ({"config": {}}, ""),
    "an impossible value": ({"clients": 0}, "clients"),
    "other classes": ({"classes": ["a", "b"]}, "its tasks are not those"),
    "more classes": ({"classes": [str(k) for k in range(15)]}, "its tensors are not those of fedavg"),
    "other tasks": ({"tasks": [[[0]]]}, "its tasks are not those"),
    "a class twice": ({"tasks": [[[0, 1, 2], [2, 3, 4]]] * 3}, "its tasks are not those"),
    "labels that there are not": ({"tasks": [[[0, 1, 2], [3, 4, 10**6]]] * 3}, "its tasks are not those"),
    "another ViT": ({"weights_digest": "0" * 16}, "its frozen ViT has the digest"),
    "a foreign system": ({"system_digest": "0" * 16}, "is another system here"),
    "tensors that there are not": ({"same_as": {"server.x": "server.nothing"}}, "it has no tensor server.nothing"),
}


@pytest.mark.parametrize("how", CARDS)
def test_a_card_of_another_run_is_one_line(kept, how, one_line):
    path = kept[2]
    card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    values, words = CARDS[how]
    values = {"config": {**card["config"], "clients": 0}} if how == "an impossible value" else values
    rewritten(card, **values)(path)
    with pytest.raises(LsclError) as caught:
        load_model(path)
    one_line(caught, words, path.stem)


def test_the_card_of_another_system_is_one_line(kept, smoke, one_line):
    other = model_path(run(smoke(method="local_head"), quiet=True, keep_model=True))
    shutil.copy(kept[2], other)
    with pytest.raises(LsclError) as caught:
        load_model(other)
    one_line(caught, "its card says")
    card = json.loads(other.with_suffix(".json").read_text("utf-8"))
    ours = json.loads(kept[2].with_suffix(".json").read_text("utf-8"))
    rewritten(card, bytes=ours["bytes"], sha256=ours["sha256"], same_as=ours["same_as"])(other)
    with pytest.raises(LsclError) as caught:
        load_model(other)
    one_line(caught, "its tensors are not those of local_head")


def test_models_of_a_gpu_are_read_where_there_is_none(kept):
    path = kept[2]
    before = load_model(path)
    rewritten(json.loads(path.with_suffix(".json").read_text("utf-8")), device="cuda")(path)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert (load_model(path).predict(images).logits == before.predict(images).logits).all()


REPLACED = {
    "NaN": (
        lambda tensors: {name: value * torch.nan for name, value in tensors.items()},
        "sees NaN or infinite scores",
    ),
    "infinite": (
        lambda tensors: {name: value + torch.inf for name, value in tensors.items()},
        "NaN or infinite scores",
    ),
    "one too many": (
        lambda tensors: {**tensors, "client0.model.x": torch.zeros(1)},
        'Unexpected key(s) in state_dict: "x"',
    ),
    "somebody else's": (
        lambda tensors: {**tensors, "client99.model.x": torch.zeros(1)},
        "client99.model.x is nobody's",
    ),
    "of another file": (lambda tensors: {"x": torch.zeros(1)}, "x is nobody's"),
    "none": (lambda tensors: {}, "its tensors are not those of fedavg_vit"),
}


@pytest.mark.parametrize("how", REPLACED)
def test_other_tensors_in_a_whole_file_are_one_line(smoke, how, one_line):
    replaced, words = REPLACED[how]
    path = model_path(run(smoke(method="fedavg_vit"), quiet=True, keep_model=True))
    card, tensors = json.loads(path.with_suffix(".json").read_text("utf-8")), load_file(path)
    tensors = {**tensors, **{name: tensors[same] for name, same in card["same_as"].items()}}
    save_file({name: value.clone() for name, value in replaced(tensors).items()}, path)
    data = path.read_bytes()
    rewritten(card, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), same_as={})(path)
    with pytest.raises(LsclError) as caught:
        load_model(path).predict(np.zeros((16, 16, 3), np.uint8))
    one_line(caught, words, path.stem)


def test_weights_that_the_run_did_not_use_are_one_line(kept, tmp_path, one_line):
    with pytest.raises(LsclError) as caught:
        load_model(kept[2], weights=tmp_path / "vit.safetensors")
    one_line(caught, "leave weights out")


def test_tensors_of_another_shape_are_one_line(smoke, one_line):
    path = model_path(run(smoke(method="pilora"), quiet=True, keep_model=True))
    card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("state.lora.A"))
    save_file({**tensors, name: torch.zeros(3, 3)}, path)
    data = path.read_bytes()
    rewritten(card, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())(path)
    with pytest.raises(LsclError) as caught:
        load_model(path).predict(np.zeros((16, 16, 3), np.uint8), client=int(name[6]))
    one_line(caught, "cannot look at images")


@pytest.mark.parametrize("name", ["model.pt", "model", "model.safetensors", "model.json"])
def test_what_is_no_kept_model_is_one_line(tmp_path, name, one_line):
    path = tmp_path / name
    if name == "model.pt":
        torch.save({"x": torch.zeros(2)}, path)
    elif name == "model.safetensors":
        save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(LsclError) as caught:
        load_model(path)
    one_line(caught, path.stem)


@pytest.mark.parametrize("given", [None, 3, b"model.safetensors", [], {}, {"name": "x"}, {"profile": 3, "name": 4}])
def test_what_is_neither_a_path_nor_a_record_is_one_line(given, one_line):
    with pytest.raises(LsclError) as caught:
        load_model(given)
    one_line(caught, f"cannot read {given!r} as kept models: give the .safetensors file, its card or its record")


def test_a_run_with_a_local_checkpoint_needs_that_file(smoke, tmp_path, one_line):
    path = tmp_path / "tiny.safetensors"
    save_file(foundation("tiny", None).vit.state_dict(), path)
    record = run(smoke(method="local_head", weights=path), quiet=True, keep_model=True)
    assert load_model(record, weights=path).classes[0] == "class00"
    with pytest.raises(LsclError) as caught:
        load_model(record)
    one_line(caught, "say by weights where")


def test_the_command_line(kept, tree, tmp_path, capsys):
    pictures = [str(path) for path in sorted((tree / "test").rglob("*.png"))[:2]]
    code, out, err = call(
        capsys, "predict", str(kept[2]), *pictures, "--top", "2", "--figure", str(tmp_path / "one.png")
    )
    assert code == 0 and len(out.splitlines()) == 3
    assert read_picture(tmp_path / "one.png", "one.png").size[0] > 100
    name, score = load_model(kept[2]).predict(pictures[1]).best(0, 1)[0]
    assert f"{pictures[1]}: {name} {100 * score:.1f} %, " in out
    code, _, err = call(capsys, "predict", str(kept[2]), pictures[0], "--figure", str(tmp_path / "one.exe"))
    assert code == 2 and "a figure ends in" in err and len(err.strip().splitlines()) == 1
    images = ("--dataset", "folder", "--data-dir", str(tree), "--image-size", "16")
    code, out, _ = call(capsys, "run", "--profile", "smoke", "--method", "local_head", *images, "--keep-model")
    assert code == 0 and "kept " in out
