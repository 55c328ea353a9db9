"""The cost model against what torch counts and what autograd keeps, and the refusals."""

import os
import subprocess
from dataclasses import replace

import pytest
import torch
from tests_root import ROOT
from timed_steps import H100, row, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lscl import cli
from lscl.config import Experiment, experiment
from lscl.data.sources import load
from lscl.errors import LsclError
from lscl.experiments import cost_model, run, sweeps
from lscl.methods import METHODS
from lscl.models.mini import mini_vit
from lscl.models.vit import FrozenViT
from lscl.registry import DATASETS

SMALL = {"foundation": "random/vit_tiny_patch16_224", "block": 9, "batch": 4}
ROOMY = cost_model.Machine("a roomy machine", 1e18, 1e12, 1e12, 1e12, 1e12, 0.0)


@pytest.fixture
def stepped(federation, smoke, toy):
    """stepped(name): the loss of a training step of 4 images on a ViT of true shape, as a function, and the config."""

    def make(name, number=0):
        config = smoke(method=name, clients=1, private_classes=3, **SMALL)
        method, (client,) = federation(config, toy(train=2, test=1))
        client.task, stage = 0, method.stages(0)[number]
        method.start_task(client)
        method.receive(client, method.broadcast(0, stage), stage)
        (phase,) = method.phases(client, stage)
        batch = client.train.batch(client.train_index[:4])
        return lambda: phase.loss(client.model.train() and client, batch), config, (method, client, batch)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"collaboration": "cnn"},
        {"collaboration": "static"},
        {"continual": "replay"},
        {"collaboration": "cnn", "continual": "replay"},
        {"o2d": "none", "continual": "none"},
        {"method": "fed_lscl_ridge", "adapt": "every", "continual": "lwf"},
    ],
    ids=str,
)
def test_flops_of_a_whole_run_are_those_that_torch_counts(places, tmp_path, session_cache, monkeypatch, changes):
    """With other components Fed-LSCL computes something else, with the CNN alone no ViT at all."""
    config = experiment(**{"method": "fed_lscl", "profile": "smoke", **changes})
    load(config)  # draws the images, once for all tests
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "images").symlink_to(session_cache / "images")
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))  # no activations yet
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run.run(config, quiet=True)
    assert cost_model.cost(config).flops == pytest.approx(counter.get_total_flops(), rel=0.2)


@pytest.mark.parametrize("name", ["local_lora", "fed_lscl", "pilora", "dualprompt"])
def test_flops_of_a_step_are_those_that_torch_counts(stepped, name):
    loss, config, _ = stepped(name)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # torch does not count the CPU's own attention
        loss().backward()
    one = cost_model.step_of(config)
    # torch also counts the update itself, and leaves out the way back through the first qkv if nothing lies before it
    assert 4 * (one.linear + one.attention + one.convolution) == pytest.approx(counter.get_total_flops(), rel=0.12)


@pytest.mark.parametrize(("name", "number"), [("local_lora", 0), ("fed_lscl", 0), ("lorm", 1)])
def test_bytes_of_a_step_are_those_that_autograd_keeps(stepped, name, number):
    loss, config, (method, client, batch) = stepped(name, number)
    weights = {
        p.untyped_storage().data_ptr() for part in (method.foundation.vit, client.model) for p in part.parameters()
    }
    weights |= {batch.prefix.untyped_storage().data_ptr(), batch.images.untyped_storage().data_ptr()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = loss()
    measured = sum(size for place, size in kept.items() if place not in weights)
    assert alive.requires_grad and 4 * cost_model.step_of(config).saved == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["demo", "mini", "full", "colab", "paper"])
def test_every_system_has_a_cost_in_every_profile(profile, method):
    for dataset in ("cifar100", "imagenet_r", "glyphs"):
        found = cost_model.cost(experiment(profile=profile, dataset=dataset, method=method))
        values = (found.flops, found.memory, found.disk)
        assert (0 < found.steps < 1e20) == METHODS[method].trains
        assert all(value > 0 and value < 1e20 for value in values) and found.hours(cost_model.CARDS["t4"]) > 0


# What a system has beyond a head, a CNN and the frozen ViT: a value that makes more of it, and what has to cost more.
OWN_PARTS = {
    "fed_ncm": [({"images_per_class": 100}, "convolution")],
    "fed_ridge": [({"ridge_features": 500}, "convolution"), ({"ridge_features": 500}, "server")],
    "local_ridge": [({"ridge_features": 500}, "convolution"), ({"ridge_features": 500}, "memory")],
    "fed_lscl": [
        ({"rank": 32}, "disk"),
        ({"rank": 32}, "convolution"),
        ({"buffer_per_class": 40}, "convolution"),
        ({"o2d": "exact"}, "server"),
    ],
    "fed_lscl_ridge": [
        ({"rank": 32}, "convolution"),
        ({"adapt": "first"}, "linear"),
        ({"adapt": "every"}, "linear"),
        ({"freeze_cnn": False}, "convolution"),
        ({"ridge_features": 4000}, "convolution"),
        ({"ridge_features": 4000}, "server"),
        ({"o2d": "shared"}, "server"),
    ],
    "local_lora": [({"rank": 32}, "disk")],
    "l2p": [({"l2p_pool": 20}, "disk"), ({"l2p_length": 10}, "linear"), ({"l2p_length": 10}, "attention")],
    "dualprompt": [({"dual_general_length": 10}, "disk"), ({"dual_task_length": 10}, "disk")],
    "fedmgp": [
        ({"mgp_local_length": 30}, "disk"),
        ({"mgp_length": 30}, "linear"),
        ({"mgp_surrogate_epochs": 10}, "server"),
    ],
    "pilora": [({"rank": 32}, "disk")],
    "lorm": [({"lorm_rank": 64}, "disk")],
    "glfc": [
        ({"glfc_memory": 100}, "convolution"),
        ({"glfc_perturb": 100}, "convolution"),
        ({"glfc_steps": 500}, "server"),
    ],
    "target": [
        ({"target_replay": 8.0}, "convolution"),
        ({"target_warmup": 0}, "server"),
        ({"target_steps": 20}, "server"),
        ({"target_student_steps": 800}, "server"),
        ({"target_width": 128}, "server"),
    ],
    "mfcl": [
        ({"mfcl_replay": 256}, "convolution"),
        ({"mfcl_steps": 200}, "server"),
        ({"mfcl_width": 128}, "convolution"),
    ],
}
LESS = {
    "o2d": "none",
    "glfc_memory": 0,
    "adapt": "none",
}  # with the value of the list it is there, with this one it is not
PLAIN = {"fedavg", "fedprox", "fedavg_vit", "local_head"}


def test_every_system_says_what_it_has_of_its_own():
    assert set(OWN_PARTS) | PLAIN == set(METHODS) and not set(OWN_PARTS) & PLAIN


@pytest.mark.parametrize(
    ("method", "values", "grows"), [(method, *part) for method, parts in OWN_PARTS.items() for part in parts], ids=str
)
def test_every_part_of_a_system_costs_something(method, values, grows):
    """A system whose own work is counted as 0 would pass for one without it."""
    base = {"profile": "mini", "dataset": "cifar100", "method": method}
    without = {name: LESS[name] for name in values if name in LESS}
    one, more = (cost_model.cost(experiment(**base, **changed)) for changed in (without, values))
    assert getattr(more, grows) > getattr(one, grows)


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in METHODS), *(("fed_lscl", {"collaboration": kind}) for kind in ("static", "cnn"))],
    ids=str,
)
def test_one_more_client_takes_the_bytes_of_its_model(name, changes):
    base = dict(profile="demo", dataset="glyphs", method=name, **changes)
    kind, config = METHODS[name], experiment(**base)
    vit = mini_vit()
    frozen = (
        FrozenViT(vit, len(vit.blocks) if kind.cut(config) is None else kind.cut(config), (0.5,) * 3, (0.5,) * 3)
        if kind.uses_vit(config)
        else None
    )
    model = kind(config, frozen, DATASETS["glyphs"].classes).new_model(0)
    more = experiment(**base, clients=config.clients + 1)
    found = cost_model.cost(more).memory - cost_model.cost(config).memory
    # Of a CNN's buffers are few; a head in closed form is one.
    numbers = [*model.parameters(), *(value for value in model.buffers() if value.dtype == torch.float64)]
    kept = {"local_ridge": 8 * frozen.width * (frozen.width + DATASETS["glyphs"].classes) if frozen else 0}  # its sums
    wanted = sum(p.numel() * p.element_size() for p in numbers) + kept.get(name, 0)
    assert found == pytest.approx(wanted, rel=0.02)  # all but some biases


def test_images_are_those_of_the_partition(toy, monkeypatch):
    from lscl.data.partition import partition

    for split in ("official", "holdout"):
        config = experiment(profile="smoke", dataset="folder", eval_split=split, private_classes=6, images_per_class=6)
        data = toy(classes=18)
        monkeypatch.setitem(DATASETS._entries, "folder", replace(DATASETS["folder"], images=(6, 2), classes=18))
        tasks = [task for stream in partition(config, data).tasks for task in stream]
        counts = cost_model.Counts.of(config)
        assert counts.epoch == pytest.approx(sum(len(task.train) for task in tasks), rel=0.06)  # 30 % of 6 images are 2
        assert counts.evaluated == pytest.approx(
            sum(len(task.test) * (1 if i % 2 else 2) for i, task in enumerate(tasks)), rel=0.15
        )


def test_the_servers_work_is_in_the_cost():
    for method in ("target", "fedmgp", "mfcl", "glfc"):
        assert cost_model.cost(experiment(profile="paper", dataset="cifar100", method=method)).server > 0
    more = cost_model.cost(experiment(profile="paper", dataset="cifar100", method="target", target_student_steps=800))
    assert more.server > 1.5 * cost_model.cost(experiment(profile="paper", dataset="cifar100", method="target")).server


def test_more_images_rounds_and_clients_cost_more():
    base = dict(profile="mini", dataset="cifar100", method="fed_lscl")
    once = cost_model.cost(experiment(**base))
    assert cost_model.cost(experiment(**base, rounds=10)).flops == pytest.approx(2 * once.flops, rel=0.15)
    assert cost_model.cost(experiment(**base, images_per_class=120)).flops > 1.6 * once.flops
    assert cost_model.cost(experiment(**base, batch=64)).memory > once.memory
    assert cost_model.cost(experiment(**base, stop_after=1)).flops < 0.3 * once.flops


def test_too_little_memory_or_disk_is_one_line_before_anything_runs(one_line, monkeypatch):
    config = experiment(profile="paper", dataset="cifar100")
    with pytest.raises(LsclError) as caught:
        cost_model.check_costs([config], cost_model.Machine("a small card", 2**30, 1, 1, 1, 1, 1))
    one_line(caught, config.name, "GB of memory", "a small card has 1.0", "lower batch")
    monkeypatch.setattr(cost_model.shutil, "disk_usage", lambda _: cost_model.shutil._ntuple_diskusage(2e9, 1e9, 1e9))
    with pytest.raises(LsclError) as caught:
        cost_model.check_costs([config], ROOMY)
    one_line(caught, "1 GB are free", "LSCL_CACHE")
    for start in (
        lambda: run.run(config, quiet=True),
        lambda: sweeps.sweep("table1", {"profile": "paper", "dataset": "cifar100"}, [42]),
    ):
        monkeypatch.setattr(
            "lscl.experiments.records.source", lambda: {"commit": "abc", "dirty": False, "code_digest": "0"}
        )
        monkeypatch.setattr(run, "prepare", lambda *_: pytest.fail("it began"))
        with pytest.raises(LsclError) as caught:
            start()
        one_line(caught, "LSCL_CACHE")


def test_what_lies_in_the_cache_is_not_asked_for_again(monkeypatch, tmp_path):
    config = experiment(profile="colab", dataset="cifar100", method="fedavg")
    need = cost_model.disk([cost_model.cost(config)])
    monkeypatch.setenv("LSCL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / "images", "wb") as file:
        file.truncate(int(need))  # takes no room
    monkeypatch.setattr(cost_model.shutil, "disk_usage", lambda _: cost_model.shutil._ntuple_diskusage(2e9, 1e9, 0))
    cost_model.check_costs([config], ROOMY)


def test_tokens_that_are_one_convolution_need_no_disk_but_a_pass_each_time(monkeypatch):
    """Fed-LSCL cuts behind block 2, PILoRA in front of block 0; the mini ViT has a stem of many layers there."""
    plans = {
        (method, vit): cost_model.cost(
            experiment(method=method, dataset="cifar100", profile="paper", **({"foundation": vit} if vit else {}))
        )
        for method in ("fed_lscl", "pilora")
        for vit in (None, "mini")
    }
    images = 50_000  # of the training split: the others are held out of it
    pictures = images * 32**2 * 3
    assert plans["pilora", None].disk < 2 * pictures and plans["fed_lscl", None].disk > images * 197 * 768 * 4
    assert plans["pilora", "mini"].disk > images * 37 * 192 * 4
    monkeypatch.setattr(cost_model, "has_plain_embedding", lambda vit: False)
    stored = cost_model.cost(experiment(method="pilora", dataset="cifar100", profile="paper"))
    assert stored.disk > images * 197 * 768 * 4
    assert (
        1.002 < plans["pilora", None].linear / stored.linear < 1.02
    )  # a pass of the convolution beside each other one


def test_a_bounded_cache_needs_no_more_than_its_bound(monkeypatch, one_line):
    runs = sweeps.runs_of("table1", {"profile": "paper", "dataset": "cifar100"}, [42])
    monkeypatch.setattr(cost_model.shutil, "disk_usage", lambda _: cost_model.shutil._ntuple_diskusage(32e9, 0, 32e9))
    with pytest.raises(LsclError) as caught:
        cost_model.check_costs(runs, ROOMY)
    one_line(caught, "32 GB are free")
    monkeypatch.setenv("LSCL_CACHE_GB", "31")
    assert len(cost_model.check_costs(runs, ROOMY)) == len(runs)


def test_small_profiles_and_unknown_data_run_unasked(monkeypatch, smoke):
    monkeypatch.setattr(cost_model, "check_costs", lambda *_: pytest.fail("asked"))
    run.check_affordable([smoke(), experiment(profile="mini"), experiment(profile="paper", dataset="folder")])


def test_a_folder_has_no_known_size(smoke, one_line):
    with pytest.raises(LsclError) as caught:
        cost_model.cost(smoke())
    one_line(caught, "dataset = 'folder'", "cifar100")


def test_the_colab_plan_fits_one_free_session():
    costs = [cost_model.cost(config) for config in sweeps.plan("colab")]
    card = cost_model.CARDS["t4"]
    assert sum(one.hours(card) for one in costs) <= 2
    assert max(one.memory for one in costs) < card.memory and cost_model.disk(costs) < 40e9
    assert {one.config.method for one in costs} == set(sweeps.quick_systems("colab"))


def test_the_command_prints_every_system_and_a_total(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "--profile", "mini", "--card", "h100"])
    lines = capsys.readouterr().out.splitlines()
    rows = 2 * len(sweeps.main_table())
    assert end.value.code == 0 and len(lines) == 2 + rows + 1 + rows and "all on h100" in lines[1 + rows]
    assert lines[2 + rows].endswith("what --keep-payloads writes")
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "table1", "--profile", "mini", "--dataset", "glyphs", "--methods", "l2p", "--seeds", "1,2"])
    _, needs, _, _, sends = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert needs == sends == ["glyphs", "l2p", "2"]


def test_hours_follow_the_steps_that_were_timed_on_the_card(places):
    """Each training step of that system takes as long as the timed one; all else, and other systems, as computed."""
    base = {"profile": "paper", "dataset": "cifar100"}
    ours, other = (experiment(**base, method=name) for name in ("fed_lscl", "l2p"))
    card = cost_model.find_card("h100")
    assert card == cost_model.CARDS["h100"] and card.basis(ours) == "computed"
    seconds = 3 * cost_model.seconds_of(ours, card)
    write(places / "results", [row("fed_lscl", seconds=seconds)])
    measured = cost_model.find_card("h100")
    assert (measured.basis(ours), measured.basis(other)) == (f"measured on {H100}", "computed")
    larger = experiment(**base, batch=32)
    for config, step in ((ours, seconds), (larger, 2 * seconds)):
        one, computed = cost_model.cost(config), cost_model.seconds_of(config, card)
        steps = config.rounds * config.epochs * cost_model.Counts.of(config).epoch / config.batch
        assert one.hours(measured) == pytest.approx(one.hours(card) + steps * (step - computed) / 3600)
        assert one.hours(measured) > steps * step / 3600
    assert cost_model.cost(other).hours(measured) == cost_model.cost(other).hours(card)
    write(places / "results", [row("local_head", seconds=1e-4)])
    head = cost_model.cost(experiment(**base, method="local_head"))
    assert 0 < head.hours(cost_model.find_card("h100")) < head.hours(card) - 0.9 * head.steps * card.step / 3600
    assert cost_model.find_card("t4") == cost_model.CARDS["t4"]
    costs = [cost_model.cost(ours), cost_model.cost(other)]
    assert cost_model.basis_of(costs, measured) == f"measured on {H100} (1 of 2 runs, the rest computed)"
    assert cost_model.basis_of(costs[:1], measured) == f"measured on {H100}"
    assert cost_model.basis_of(costs, card) == "computed"


def test_products_are_as_much_faster_as_the_sheet_says_of_a_runs_arithmetic():
    card, plain = cost_model.CARDS["h100"], experiment(profile="paper", dataset="cifar100", method="l2p")
    faster = plain.model_copy(update={"tf32": True})
    assert (card.speedup(plain), card.speedup(faster)) == (1, pytest.approx(494.7 / 67))
    assert cost_model.CARDS["t4"].speedup(faster) == 1  # it has no TF32
    one = cost_model.cost(plain)
    rest = one.traffic / card.traffic + one.steps * card.step  # which no arithmetic makes faster
    hours = cost_model.cost(faster).hours(card)
    assert 3600 * hours - rest == pytest.approx((3600 * one.hours(card) - rest) * 67 / 494.7)
    assert cost_model.seconds_of(faster, card) < cost_model.seconds_of(plain, card)


def test_every_row_says_where_its_hours_come_from(places, capsys):
    write(places / "results", [row("l2p")])
    words = ["plan", "table1", "--profile", "paper", "--dataset", "cifar100", "--seeds", "42", "--methods", "l2p,lorm"]
    ours = cost_model.cost(experiment(profile="paper", dataset="cifar100", method="l2p"))
    table = cost_model.plan_table([ours], cost_model.find_card("h100")).splitlines()
    assert table[0].endswith("hours  from") and table[1].endswith(f"  measured on {H100}")
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--card", "all"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and [line.split()[0] for line in lines] == ["card", *cost_model.CARDS]
    basis = {line.split()[0]: line.partition("  ")[2].split("  ")[-1] for line in lines[1:]}
    assert basis.pop("h100") == f"measured on {H100} (1 of 2 runs, the rest computed)"
    assert set(basis.values()) == {"computed"}


def test_a_card_that_is_too_small_says_so(capsys):
    big = cost_model.cost(experiment(profile="paper", dataset="cifar100", method="l2p", batch=256))
    fits = {line.split()[0]: line.split()[2] for line in cost_model.cards_table([big]).splitlines()[1:]}
    assert big.memory > cost_model.CARDS["t4"].memory and (fits["t4"], fits["h100"]) == ("no", "yes")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--card", "t44"), "did you mean 't4'?"),
        (("tabel1",), "did you mean 'table1'?"),
        (("--methods", "none_of_them"), "unknown method 'none_of_them'"),
        (("--foundation", "vit_bas_patch16_224", "table1"), "did you mean 'vit_base_patch16_224'?"),
    ],
)
def test_bad_input_to_plan_is_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["plan", "--profile", "mini", "--card", "t4", *words]
            if "--card" not in words
            else ["plan", "--profile", "mini", *words]
        )
    err = capsys.readouterr().err
    assert end.value.code == 2 and says in err and len(err.strip().splitlines()) == 1


def test_this_machine_is_measured():
    found = cost_model.measure_machine(torch.device("cpu"))
    assert found.memory > 2**28 and found.traffic > 1e7
    assert all(1e8 < rate < 1e15 for rate in (found.linear, found.attention, found.convolution))


# ---- batch systems


def test_shares_are_every_run_once_whatever_is_finished():
    runs = sweeps.runs_of("table1", {"profile": "mini", "dataset": "glyphs"}, [1, 2, 3])
    shares = [sweeps.share_of_runs(runs, index, 7) for index in range(7)]
    assert sorted(one.name for share in shares for one in share) == sorted(one.name for one in runs)
    assert isinstance(runs[0], Experiment) and max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("index", "count"), [(5, 5), (-1, 5), (0, 0)])
def test_a_share_that_does_not_exist_is_one_line(index, count, one_line):
    with pytest.raises(LsclError) as caught:
        sweeps.share_of_runs([], index, count)
    one_line(caught, f"task_index = {index}")


def test_the_slurm_example_deals_out_the_table_without_slurm(capsys):
    """The script is run as a job array would run it; two shares of two are the whole table."""
    script, found = ROOT / "examples" / "slurm" / "table1.sh", []
    assert f"#SBATCH --array=0-{3 * len(sweeps.main_table()) - 1}\n" in script.read_text(encoding="utf-8")
    for index in ("0", "1"):
        values = {
            "SLURM_ARRAY_TASK_ID": index,
            "SLURM_ARRAY_TASK_COUNT": "2",
            "LSCL": "echo",
        }  # says what the command line gets
        command = ["bash", str(script), "--list", "--dataset", "imagenet_r"]
        words = subprocess.run(
            command, env={**os.environ, **values}, capture_output=True, encoding="utf-8", check=True
        ).stdout.split()
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
        found.append(capsys.readouterr().out.split())
    names = [share[2::3] for share in found]
    wanted = [one.name for one in sweeps.runs_of("table1", {"profile": "paper", "dataset": "imagenet_r"}, sweeps.SEEDS)]
    assert names == [wanted[0::2], wanted[1::2]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cnn": "inception_v3"}, "cnn = 'inception_v3'"),
        ({"cnn": "tiny,levit_128s"}, "cnn = 'levit_128s'"),
        ({"block": 99}, "block = 99"),
        ({"foundation": "random/swin_tiny_patch4_window7_224"}, "SwinTransformer"),
        ({"foundation": "random/test_vit3", "method": "l2p"}, "pools all tokens (map)"),
        ({"foundation": "random/test_vit2", "method": "fedmgp"}, "pools all tokens (avg)"),
        ({"foundation": "random/vitamin_small_224", "method": "lorm"}, "GeGluMlp"),
    ],
)
def test_a_run_that_would_be_refused_is_refused_by_the_plan(values, words, one_line):
    with pytest.raises(LsclError) as caught:
        cost_model.cost(experiment(profile="mini", dataset="cifar100", **values))
    one_line(caught, words)


@pytest.mark.parametrize(
    "name", ["aimv2_large_patch14_224", "vit_base_patch16_siglip_224", "vit_tiny_r_s16_p8_224", "vitamin_small_224"]
)
def test_other_vits_have_a_cost(name):
    assert (
        cost_model.cost(experiment(profile="mini", dataset="cifar100", foundation=f"random/{name}")).hours(
            cost_model.CARDS["t4"]
        )
        > 0
    )


def test_blocks_know_whether_the_vit_pools():
    found = {
        name: cost_model.blocks_of(experiment(foundation=f"random/{name}", block=1))
        for name in ("test_vit", "test_vit2", "vitamin_small_224")
    }
    assert [one.pooled for one in found.values()] == [False, True, True]
    assert found["vitamin_small_224"].hidden == 3 * 384  # three layers of 2 d x d, as two of 3 d x d


def test_a_larger_vit_costs_more_and_no_timed_step_is_like_its_own():
    """At twice the side it has four times the patches."""
    own, large = (
        cost_model.blocks_of(experiment(profile="paper", dataset="cifar100", vit_size=size)) for size in (None, 448)
    )
    assert (own.tokens - 1) * 4 == large.tokens - 1
