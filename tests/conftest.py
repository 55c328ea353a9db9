"""What the tests share: a cache for the session, a results folder for each test, and small data."""

import os

# With any of these, typer and rich write as for a terminal; typer reads them when it is imported.
os.environ.pop("GITHUB_ACTIONS", None)
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("PY_COLORS", None)

import lscl  # noqa: F401, I001  first: it says how threads of OpenMP wait, and torch reads that when it is imported

import gc
import json
import resource
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from made_records import record
from PIL import Image
from tests_root import ROOT, Recorder, compared
from toy_system import TOY_FACTS, ToySystem, load_toy

from lscl.config import experiment
from lscl.data.glyphs import glyphs
from lscl.data.partition import Census, partition
from lscl.data.store import Dataset, ImageSet
from lscl.experiments import records
from lscl.experiments.progress import Progress
from lscl.experiments.run import read_inputs, run
from lscl.experiments.sweeps import variant_run
from lscl.federation.client import Client
from lscl.federation.loop import InProcess, federate
from lscl.federation.method import Stage
from lscl.models.vit import foundation_of
from lscl.registry import DATASETS, METHODS, register, register_dataset

# What takes longest, longest first; each other file takes less.
LONGEST = (
    "tests/publish/test_site.py",
    "tests/flower/test_flower_processes.py",
    "tests/test_gpu_benchmark.py",
    "notebooks/03_continual_finetuning.ipynb",
    "notebooks/04_one_by_one_distillation.ipynb",
    "notebooks/02_collaborative_training.ipynb",
    "notebooks/10_build_on_it.ipynb",
    "notebooks/00_the_problem.ipynb",
    "notebooks/01_data_partitioning.ipynb",
    "tests/publish/test_page_of_results.py",
    "tests/publish/test_notebooks_of_records.py",
    "tests/methods/test_true_shapes.py",
    "tests/test_wheel.py",
    "tests/flower/test_grid.py",
    "tests/flower/test_server_app.py",
    "tests/test_bad_input.py",
    "tests/federation/test_robust.py",
    "tests/experiments/test_cost_model.py",
)


NUMBERS = count()  # of the tests, for the names of their folders


def pytest_collection_modifyitems(items):
    """What takes longest starts first, so that at the end no worker is left alone with it."""
    names = {item: item.path.relative_to(ROOT).as_posix() for item in items}
    items.sort(key=lambda item: LONGEST.index(names[item]) if names[item] in LONGEST else len(LONGEST))


def pytest_collection():
    gc.disable()  # until all tests are imported


def pytest_collection_finish():
    """What the imports made stays: Python's collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    """One cache for all tests, workers and kernels of notebooks: the glyphs are drawn once."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="lscl-tests-", ignore_cleanup_errors=True)
        os.environ["LSCL_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)


@pytest.fixture(scope="session")
def session_cache():
    """The cache of all tests, with the glyphs in it."""
    glyphs()  # the worker that comes first draws them, the others wait for it
    return Path(os.environ["LSCL_CACHE"])


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path_factory, session_cache):
    """Send results to a folder of each test, never to the repository, as if the code were committed; -> that folder.

    It is there once something is written to it. What a test draws from torch's own generator is the same each time.
    """
    root = tmp_path_factory.getbasetemp() / f"places-{next(NUMBERS)}" / "root"
    monkeypatch.setenv("LSCL_CACHE", str(session_cache))
    monkeypatch.setenv("LSCL_ROOT", str(root))
    monkeypatch.setattr(records, "source", lambda: {"commit": None, "dirty": False, "code_digest": "c0de"})
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing here has to survive a power cut
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # torch.manual_seed would note its whole stack for each kind of device
    return root


@pytest.fixture
def published(places):
    """The published numbers, in the results folder of the test."""
    shutil.copytree(ROOT / "results" / "published", places / "results" / "published")


def pictures(classes, count, size, draw):
    """`count` noisy images of each class, which differ in colour: (classes * count, size, size, 3) uint8, labels."""
    colours = np.random.default_rng(5).uniform(40, 215, (classes, 1, 1, 1, 3))
    images = colours + draw.normal(0, 30, (classes, count, size, size, 3))
    return images.clip(0, 255).astype(np.uint8).reshape(-1, size, size, 3), np.repeat(np.arange(classes), count)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """An image-folder tree, train/ and test/: 14 classes, as the smoke profile needs, of 6 and 2 images, 16 pixels."""
    top = tmp_path_factory.mktemp("tree")
    for split, images_of_class in (("train", 6), ("test", 2)):
        images, labels = pictures(14, images_of_class, 16, np.random.default_rng(images_of_class))
        for i, (image, label) in enumerate(zip(images, labels)):
            folder = top / split / f"class{label:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:03d}.png")
    return top


@pytest.fixture
def smoke(tree):
    """smoke(**values): the smoke profile on `tree`; a server that needs images gets one of each class's test images."""

    def make(**values):
        spare = {"test_images_per_class": 1} if METHODS[values.get("method", "fed_lscl")].surrogate else {}
        return experiment(
            **{"profile": "smoke", "dataset": "folder", "data_dir": tree, "image_size": 16, **spare, **values}
        )

    return make


@pytest.fixture
def recorded(smoke, tree):
    """Two records of the smoke profile."""
    return [run(smoke(method=method), quiet=True) for method in ("local_head", "fed_lscl")]


@pytest.fixture
def toy():
    """toy(classes, train, test): a data set in memory, images by class."""

    def make(classes=14, train=6, test=2, size=16):
        draw = np.random.default_rng(0)
        names = tuple(f"class{label:02d}" for label in range(classes))
        return Dataset("toy", *(ImageSet(*pictures(classes, count, size, draw), names) for count in (train, test)))

    return make


@pytest.fixture
def federation(toy):
    """federation(config): the method and its clients on `toy`, ready for the loop; nothing is read from a folder."""

    def make(config, data=None):
        data = data or toy()
        kind, device = METHODS[config.method], torch.device("cpu")
        frozen = foundation_of(config, kind.cut(config)) if kind.vit else None
        train, test = (read_inputs(kind, frozen, images, device) for images in (data.train, data.test))
        method, parts = kind(config, frozen, len(data.classes)), partition(config, data)
        method.census = Census.count(parts, data)
        if kind.surrogate:
            images = pictures(
                len(data.classes), config.mgp_surrogate_per_class, data.test.images.shape[1], np.random.default_rng(9)
            )
            method.server_images = read_inputs(kind, frozen, ImageSet(*images, data.classes), device)
        return method, [Client(k, method.new_model(k), parts, train, test, config.seed) for k in range(config.clients)]

    return make


@pytest.fixture
def played(federation):
    """played(config, rounds): method, clients and what was sent after so many reports of the loop (None = all).

    The clients are in evaluation mode.
    """

    def make(config, rounds=None, data=None):
        method, clients = federation(config, data)
        transport = Recorder(method, clients)
        for number, _ in enumerate(federate(method, transport), 1):
            if number == rounds:
                break
        for client in clients:
            client.model.eval()
        return method, clients, transport.log

    return make


@pytest.fixture
def pooled():
    """pooled(method, clients, tasks): features (n, D) and labels (n,) of all images of these clients, in one place."""

    def gather(method, clients, tasks=None):
        parts = [part for client in clients for part in client.partition.tasks[client.id][:tasks]]
        batch = clients[0].train.batch(torch.tensor([i for part in parts for i in part.train]))
        with torch.no_grad():
            return method.frozen_feature(batch).double(), batch.labels

    return gather


@pytest.fixture
def reordered(federation):
    """reordered(config, order, back): method and clients after a run in which the tasks are dealt out otherwise.

    order: whose tasks each client has; back: whether the tasks come in the opposite order.
    """

    def make(config, order, back):
        method, clients = federation(config)
        streams = [clients[0].partition.tasks[k] for k in order]
        parts = replace(clients[0].partition, tasks=tuple(stream[::-1] if back else stream for stream in streams))
        method.census = replace(method.census, parts=parts, train=method.census.train[list(order)])
        method.census = replace(method.census, test=method.census.test[list(order)])
        if back:
            method.census = replace(method.census, train=method.census.train[:, ::-1].copy())
            method.census = replace(method.census, test=method.census.test[:, ::-1].copy())
        for client in clients:
            client.partition = parts
        list(federate(method, InProcess(method, clients)))
        return method, [clients[order.index(k)] for k in range(len(clients))]

    return make


@pytest.fixture
def second_task(played, smoke):
    """second_task(name, moved, **values): method and first client in round 0 of the second task, in evaluation mode.

    moved: how far the client's parameters have gone since, as the standard deviation of a random step.
    """

    def make(name, moved=0.0, **values):
        method, clients, _ = played(smoke(method=name, **values), 2)
        client, draw = clients[0], torch.Generator().manual_seed(0)
        client.task, client.round = 1, 0
        method.receive(client, method.broadcast(0, Stage(1, 0)), Stage(1, 0))
        client.model.eval()
        with torch.no_grad():
            for parameter in client.model.parameters():
                parameter += moved * torch.randn(parameter.shape, generator=draw)
        return method, client

    return make


@pytest.fixture
def in_pieces(tmp_path):
    """in_pieces(config, rounds): whether a run that stops and resumes after each round ends as one without a stop."""

    def stop(*_):
        raise KeyboardInterrupt

    def check(config, rounds):
        whole = run(config, quiet=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LSCL_ROOT", str(tmp_path / "pieces"))
            for _ in range(rounds):
                with pytest.MonkeyPatch.context() as stopping:
                    stopping.setattr(Progress, "round", stop)
                    with pytest.raises(KeyboardInterrupt):
                        run(config, quiet=True)
            assert compared(run(config, quiet=True)) == compared(whole)

    return check


@pytest.fixture
def put(places):
    """put(score, variant, seed): save a record of Fed-LSCL with what the variant changes."""

    def save(score, variant=None, seed=42, **changes):
        config = variant_run({"profile": "mini", "dataset": "cifar100"}, variant or {}, seed)
        one = record(seed=seed, score=score, clients=5, **changes)
        one |= {
            "config": {**config.values_read(), "threads": 1},
            "name": config.name,
        }
        one |= {"config_digest": config.digest, "trained_parameters": [1000 + k for k in range(5)]}
        one.pop("overrides")
        folder = records.folder("mini")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.name}.json").write_text(json.dumps(one), encoding="utf-8")

    return save


@pytest.fixture
def one_line():
    """one_line(caught, *words): the error is a single line that has every word."""

    def check(caught, *words):
        text = str(caught.value)
        assert "\n" not in text, text
        for word in words:
            assert str(word) in text, f"{word!r} not in: {text}"

    return check


@pytest.fixture
def small_files():
    """small_files(size): a context in which no file can grow beyond `size` bytes, as on a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def forked(tmp_path):
    """forked(code, *words): a process that executes code and has the library already; killed behind the test."""
    started = []

    def make(code, *words):
        started.append(Forked(tmp_path / "forked" / str(len(started)), code, *words))
        return started[-1]

    yield make
    for process in started:
        process.kill()


@pytest.fixture
def toys():
    """Register the toy system and the toy data set while a test runs; -> the values of a config that uses them."""
    register(ToySystem)
    register_dataset("toy_images", load_toy, **TOY_FACTS)
    yield {"method": "toy", "dataset": "toy_images", "profile": "smoke"}
    METHODS.remove("toy")
    DATASETS.remove("toy_images")
