"""Every figure function returns a figure with something in it."""

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from lscl.models.vit import LowRank, foundation
from lscl.results import figures

draw = np.random.default_rng(0)
IMAGES = draw.integers(0, 256, (4, 8, 8, 3), np.uint8)
COUNTS = np.zeros((2, 2, 6), int)  # class 4 and 5 are public, met in another order
for place in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (0, 0, 4), (0, 1, 5), (1, 0, 5), (1, 1, 4)):
    COUNTS[place] = 3
ACC = np.array([[[90.0, np.nan]], [[60.0, 80.0]]])

FIGURES = {
    "partition_picture": lambda: figures.partition_picture(COUNTS),
    "shares": lambda: figures.shares(COUNTS.sum(1)[:, 4:], ["e", "f"]),
    "concentration": lambda: figures.concentration({"1": draw.dirichlet(np.ones(3), 9)}),
    "image_grid": lambda: figures.image_grid(IMAGES, list("abcd"), columns=3),
    "written": lambda: figures.written(IMAGES, draw.normal(size=(4, 72, 24))),
    "similarity": lambda: figures.similarity(np.eye(4), IMAGES, "cosine"),
    "update_sizes": lambda: figures.update_sizes({"A": draw.uniform(size=5), "B": draw.uniform(size=5)}),
    "attention": lambda: figures.attention(IMAGES, draw.uniform(size=(4, 3, 3)), draw.uniform(size=(4, 3, 3))),
    "feature_change": lambda: figures.feature_change(*draw.normal(size=(2, 9, 5)), np.arange(9) % 3, list("abc")),
    "losses": lambda: figures.losses({"a": [3, 2, 1], "b": [1, 2, 3]}),
    "forgetting_curves": lambda: figures.forgetting_curves({"with": ACC, "without": ACC}, "task-masked"),
    "bars": lambda: figures.bars({"one": {"a": 1, "b": 2}, "two": {"a": 3, "b": 4}}, "kB"),
    "convergence": lambda: figures.convergence({"lr 1": [1, 0.1, 0.01]}, [1, 10, 100], "gap"),
    "curves": lambda: figures.curves({"task": {"x": draw.uniform(size=(3, 5))}, "seen": {"x": draw.uniform(size=(1, 5))}}),
    "sheets": lambda: figures.sheets({"a": IMAGES[0], "b": IMAGES[1], "c": IMAGES[2]}),
    "differences": lambda: figures.differences({"task": {"x": draw.uniform(size=3), "y": draw.uniform(size=1)}}, "points"),
    "classes_of_clients": lambda: figures.classes_of_clients({"task": {"x": draw.uniform(0, 100, (2, 9))}}, ["a", "b"], "%"),
    "by_round": lambda: figures.by_round({"up": {"x": np.ones(10)}, "down": {"x": np.zeros(10), "y": np.arange(10)}}, "MB", 5),
    "stacked": lambda: figures.stacked({"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 4}}, "minutes"),
    "growth": lambda: figures.growth({"clients": {"x": ([1, 2, 4], [1, 2, 5])}, "tasks": {"x": ([1, 4], [2, 9])}}, "seconds"),
    "costs": lambda: figures.costs({"a": (0, 50), "b": (3, 55)}, "MB", "%"),
}


def test_a_difference_beyond_the_limit_is_an_arrow_with_its_number():
    (axes,) = figures.differences({"task": {"near": np.array([1.0, 2, 3]), "far": np.array([-41.0, -42, -43])}}, "points", limit=10).axes
    assert axes.get_xlim() == (-10, 10)
    assert [text.get_text() for text in axes.texts] == ["-42.0"]
    assert [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "<"] == [[[-10, 1]]]


def pixels(figure):
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))


@pytest.mark.parametrize("name", FIGURES)
def test_something_is_drawn(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 5
    assert len(figure.axes) > 0


def test_no_figure_function_is_left_out():
    public = {name for name, thing in vars(figures).items() if hasattr(thing, "__wrapped__")} - {"cls_attention"}  # it only computes
    assert public == set(FIGURES)


def test_a_notebook_gets_a_small_png_on_the_books_ground():
    data = FIGURES["curves"]()._repr_png_()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert picture.format is None or picture.size > (400, 200)
    assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))).upper() == figures.GROUND
    assert len(data) < 60_000


def test_the_readers_style_is_left_alone():
    before = dict(mpl.rcParams)
    FIGURES["bars"]()
    assert dict(mpl.rcParams) == before


def test_the_partition_picture_leaves_unheld_classes_white():
    mesh = figures.partition_picture(COUNTS).axes[0].collections[0].get_array()
    assert mesh.shape == (2, 6)
    assert np.ma.getmaskarray(mesh).sum() + np.isnan(np.ma.getdata(mesh)).sum() >= 4  # each client lacks two classes
    held = np.ma.filled(mesh, np.nan)
    assert np.isnan(held[0]).sum() == np.isnan(held[1]).sum() == 2


def test_more_systems_than_colours():
    many = {str(i): draw.uniform(size=(2, 3)) for i in range(figures.LOOKS + 2)}
    assert len(figures.curves({"task": many}).axes[0].lines) == figures.LOOKS + 2


class TestAttention:
    def test_rows_sum_to_less_than_one(self):
        model = foundation("tiny", 1)
        z = model.prefix(torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
        maps = figures.cls_attention(model, z)
        assert maps.shape == (3, 4, 4)
        sums = maps.sum((1, 2))
        assert (sums > 0).all() and (sums < 1).all()  # the rest is CLS's attention to itself

    @pytest.mark.parametrize("adapted", [False, True])
    def test_it_is_the_attention_that_the_block_uses(self, monkeypatch, adapted):
        """Queries and keys are caught where the block itself hands them to the attention."""
        model, rng = foundation("tiny", 1), torch.Generator().manual_seed(1)
        z = model.prefix(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=rng))
        update = LowRank(torch.randn(2, 4, 32, generator=rng), torch.randn(2, 96, 4, generator=rng), 0.05) if adapted else None
        caught, real = [], F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: caught.append((q, k)) or real(q, k, v))
        model.suffix(z, update, keep=None)
        q, k = caught[0]
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 1:].mean(1).reshape(2, 4, 4)
        assert figures.cls_attention(model, z, update) == pytest.approx(weights.detach().numpy(), abs=1e-6)
