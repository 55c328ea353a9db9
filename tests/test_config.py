"""One object holds every parameter; a wrong value is one line that names the field, the value and what is allowed."""

import copy
import hashlib
import io
import json
import math
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from tests_root import ROOT
from toy_system import ToySystem

from lscl.config import (
    NEEDS,
    PROFILES,
    WHERE_AND_HOW,
    Experiment,
    ProfileName,
    check_options,
    chosen_values,
    experiment,
    fields,
    readers,
    run_of_set,
)
from lscl.errors import LsclError
from lscl.experiments import records
from lscl.registry import DATASETS, METHODS, register


@pytest.mark.parametrize("name", fields())
def test_every_field_says_what_it_is(name):
    text = fields()[name].description
    assert text and "\n" not in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "fed_lsc"}, ["unknown method 'fed_lsc'", "did you mean 'fed_lscl'?", "fedavg_vit", "local_lora"]),
        ({"dataset": "cifar10"}, ["unknown data set 'cifar10'", "did you mean 'cifar100'?", "glyphs", "folder"]),
        ({"profile": "dem"}, ["unknown profile 'dem'", "did you mean 'demo'?", "paper"]),
        ({"lora_alfa": 8}, ["unknown parameter 'lora_alfa'", "did you mean 'lora_alpha'?"]),
        ({"zzz": 8}, ["unknown parameter 'zzz' (allowed: method, dataset,"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(values, words, one_line):
    with pytest.raises(LsclError) as caught:
        experiment(**values)
    one_line(caught, *words)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("lr", -1e-3, "greater than or equal to 0.000000001"),
        ("lr", 0, "greater than or equal to 0.000000001"),
        ("lr", math.nan, "finite"),
        ("lr_cnn", math.inf, "finite"),
        ("lr_generator", -1.0, "greater than or equal to 0.000000001"),
        ("o2d_lr", 1.5, "less than or equal to 1"),
        ("clients", 0, "greater than or equal to 1"),
        ("clients", -3, "greater than or equal to 1"),
        ("tasks", 0, "greater than or equal to 1"),
        ("classes_per_task", 0, "greater than or equal to 1"),
        ("private_classes", -1, "greater than or equal to 0"),
        ("rounds", 2.5, "integer"),
        ("rounds", "many", "integer"),
        ("epochs", 0, "greater than or equal to 1"),
        ("batch", 0, "greater than or equal to 1"),
        ("rank", 0, "greater than or equal to 1"),
        ("lora_alpha", 0, "greater than or equal to 0.000001"),
        ("block", -1, "greater than or equal to 0"),
        ("features", 0, "greater than or equal to 1"),
        ("dirichlet", 0, "greater than or equal to 0.000001"),
        ("min_share", 1, "less than 1"),
        ("generator_dropout", 1.0, "less than 1"),
        ("auxiliary", -0.1, "greater than or equal to 0"),
        ("alpha", math.nan, "finite"),
        ("beta", -1, "greater than or equal to 0"),
        ("o2d_lambda", 0, "greater than or equal to 0.000001"),
        ("o2d_lr", -1, "greater than or equal to 0.000000001"),
        ("o2d_epochs", 0, "greater than or equal to 1"),
        ("buffer_per_class", -1, "greater than or equal to 0"),
        ("images_per_class", 0, "greater than or equal to 1"),
        ("image_size", 4, "greater than or equal to 8"),
        ("mgp_length", 0, "greater than or equal to 1"),
        ("mgp_block", -1, "greater than or equal to 0"),
        ("mgp_surrogate_lr", 0, "greater than or equal to 0.000000001"),
        ("pilora_lr_lora", 0, "greater than or equal to 0.000000001"),
        ("pilora_orthogonal", -1, "greater than or equal to 0"),
        ("pilora_merge", 0, "greater than or equal to 0.000001"),
        ("lorm_rank", 0, "greater than or equal to 1"),
        ("lorm_alpha", 1.5, "less than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**31, "less than or equal to 2147483647"),
        ("threads", 0, "greater than or equal to 1"),
        ("o2d", "newton", "'exact', 'sgd', 'shared', 'average' or 'none'"),
        ("consistency", "l1", "'relative', 'mean' or 'sum'"),
        ("eval_split", "train", "'official' or 'holdout'"),
        ("head_merge", "max", "'plain' or 'holders'"),
        ("o2d_upload", "images", "'features' or 'gram'"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("normalize", "perhaps", "boolean"),
        ("foundation", "", "at least 1 character"),
        ("cnn", "", "at least 1 character"),
        ("cnn", "tiny\nsmall", "match pattern"),
        ("cnn", "<script>", "match pattern"),
        ("foundation", "a\0b", "match pattern"),
        ("foundation", "mini`", "match pattern"),
    ],
)
def test_an_impossible_value_names_field_value_and_what_is_allowed(field, value, allowed, one_line):
    with pytest.raises(LsclError) as caught:
        experiment(**{field: value})
    one_line(caught, f"{field} = {value!r}", allowed, fields()[field].description)


NUMBERS = [
    name for name, field in fields().items() if set(get_args(field.annotation) or [field.annotation]) & {int, float}
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**24, -1, 1e308, "1e38", "9" * 5000])
def test_every_number_has_bounds(name, value, one_line):
    """What lies outside would end in an overflow, an allocation that fails or a matrix that cannot be inverted."""
    with pytest.raises(LsclError) as caught:
        experiment(**{name: value})
    one_line(caught, f"{name} = ", fields()[name].description)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", [name for name in NUMBERS if fields()[name].annotation is float])
def test_no_number_that_is_divided_by_may_be_a_denormal(name, one_line):
    """Rates, temperatures and the like have a least value; a weight, share or dropout of almost 0 is 0."""
    for value in (1e-320, 1e-40):
        try:
            assert getattr(experiment(**{name: value}), name) == value
        except LsclError as error:
            assert (
                "\n" not in str(error)
                and f"{name} = {value!r}" in str(error)
                and "greater than or equal to 0.0000" in str(error)
            )
            continue
        assert experiment(**{name: 0.0}) is not None, f"{name} takes {value} but not 0"


COMMITTED = sorted((ROOT / "results" / "runs").glob("*/*.json"))


def test_every_committed_record_lies_within_the_bounds():
    assert COMMITTED
    for path in COMMITTED:
        Experiment(**json.loads(path.read_bytes())["config"])


def test_every_committed_record_has_the_digest_and_the_name_of_today(monkeypatch):
    """Its digest finds a run; its name is that of the file, unless a value has become the profile's since."""
    monkeypatch.setenv("LSCL_ROOT", str(ROOT))
    others = []
    for path in COMMITTED:
        config = experiment(**json.loads(path.read_bytes())["config"])
        assert config.digest == path.stem[-12:], path.name
        others += [path.name] if config.name != path.stem else []
    assert len(others) < len(COMMITTED) / 10
    for path in COMMITTED[::40]:
        record = records.read_record(path)
        assert records.find(experiment(**record["config"]))["name"] == path.stem


@pytest.mark.parametrize(
    "values",
    [
        {"profile": ["demo"]},
        {"profile": 3},
        {"dataset": {}},
        {"method": []},
        {"weights": 3},
        {"weights": "a\0b"},
        {"clients": True},
        {"lr": False},
        {"images_per_class": True},
        {"cnn": True},
        *({name: 16**5000} for name in ("rounds", "lr", "method", "profile", "dataset", "normalize", "device")),
    ],
)
def test_a_value_of_another_type_is_one_line(values, one_line):
    with pytest.raises(LsclError) as caught:
        experiment(**values)
    one_line(caught, *[name.replace("dataset", "data set") for name in values])


def test_a_checkpoint_that_is_no_file_is_one_line(tmp_path, one_line):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(LsclError) as caught:
            experiment(weights=path)
        one_line(caught, f"weights = {str(path)!r}", "not a regular file")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", get_args(ProfileName))
def test_every_profile_is_valid_for_every_method_and_data_set(profile, method):
    for dataset, source in DATASETS.items():
        config, kind = experiment(profile=profile, method=method, dataset=dataset), METHODS[method]
        expected = {
            **PROFILES[profile],
            **kind.sizes.get(profile, {}),
            **chosen_values(kind, profile),
            **source.values.get(profile, {}),
            **kind.sizes.get((profile, dataset), {}),
        }
        assert all(getattr(config, key) == value for key, value in expected.items())
        assert config.overrides() == {} and config.name == f"{dataset}--{method}--s42--{config.digest}"


@pytest.mark.parametrize("profile", ["demo", "mini", "full", "colab", "paper"])
def test_every_profile_but_smoke_has_the_size_of_the_paper(profile):
    config = experiment(profile=profile, dataset="cifar100")
    assert (config.clients, config.tasks, config.classes_per_task, config.private_classes, config.rounds) == (
        5,
        5,
        8,
        15,
        5,
    )
    assert experiment(profile=profile, dataset="glyphs").private_classes == 40


@pytest.mark.parametrize("profile", ["smoke", "demo", "mini", "full"])
def test_sizes_of_a_method_are_its_own_business(profile):
    """Else new methods would change the digests, and with them the records, of all the others."""
    other = experiment(profile=profile, dataset="cifar100", method="fed_lscl")
    plain = Experiment(**PROFILES[profile])
    sized = {name: kind.sizes[profile] for name, kind in METHODS.items() if profile in kind.sizes}
    assert len(sized) >= 4
    for method, values in sized.items():
        assert all(
            getattr(experiment(profile=profile, dataset="cifar100", method=method), name) == value
            for name, value in values.items()
        )
        assert all(getattr(other, name) == getattr(plain, name) for name in values)


def other_value(name, now):
    """Another valid value of a field."""
    kind = fields()[name].annotation
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if value != now)
    if isinstance(now, bool):
        return not now
    special = {
        "method": "lorm",
        "dataset": "glyphs",
        "data_dir": "elsewhere",
        "weights": __file__,
        "weights_sha256": "0" * 64,
        "folder_digest": "0" * 16,
        "min_share": 0.1,
        "generator_dropout": 0.1,
        "lorm_alpha": 0.1,
        "o2d_lr": 0.1,
        "dp_delta": 0.1,
    }
    if name in special:
        return special[name]
    return "tiny" if isinstance(now, str) else 9 if now is None else now + 1


@pytest.mark.parametrize("name", sorted(set(fields()) - WHERE_AND_HOW))
def test_whatever_decides_the_result_is_in_the_digest_of_the_systems_that_read_it(name):
    changes = set()
    for method in METHODS:
        base = experiment(dataset="folder", method=method)
        given = {"dataset": "folder", "method": method, name: other_value(name, getattr(base, name))}
        changes |= {method} if experiment(**given).digest != base.digest else set()
    assert changes == set(METHODS) - {"lorm"} if name == "method" else changes == set(readers(name))


@pytest.mark.parametrize("name", ["data_dir", "device", "threads"])
def test_where_it_is_computed_is_not_in_the_digest_or_the_name(name):
    base = experiment()
    changed = experiment(**{name: other_value(name, getattr(base, name))})
    assert changed != base and changed.digest == base.digest and changed.name == base.name


def test_a_run_of_a_set_has_its_own_values_first_and_none_of_another_system():
    values = {"profile": "mini", "rank": 4, "lr": 0.1, "l2p_pool": 3}
    run = run_of_set(values, {"method": "fed_lscl", "rank": 2, "seed": 7})
    assert (run.rank, run.lr, run.seed, run.overrides()) == (2, 0.1, 7, {"rank": 2, "lr": 0.1})
    assert run.l2p_pool == experiment(profile="mini").l2p_pool


def test_the_digest_depends_on_values_not_on_how_they_were_given():
    assert experiment(rank="8", lr="0.01").digest == experiment(lr=1e-2, rank=8).digest
    assert experiment(profile="smoke", batch=8).digest == experiment(profile="smoke").digest
    assert len(experiment().digest) == 12 and int(experiment().digest, 16) >= 0


def test_a_parameter_added_later_keeps_the_digests_of_finished_runs():
    class Later(type(experiment())):
        temperature: float = 2.0

    before = experiment(profile="mini", rank=8)
    assert Later(**before.model_dump()).digest == before.digest
    assert Later(**before.model_dump(), temperature=3.0).digest != before.digest


def test_what_was_tuned_is_a_value_of_the_profile_for_that_method_only(monkeypatch):
    for method, values in (("local_head", {"lr": 0.5}), ("local_lora", {})):
        monkeypatch.setattr(METHODS[method], "tuned", values)
    assert experiment(profile="mini", method="local_head").lr == 0.5
    assert experiment(profile="mini", method="local_head").overrides() == {}
    assert experiment(profile="mini", method="local_head", lr=0.25).overrides() == {"lr": 0.25}
    assert experiment(profile="mini", method="local_lora").lr == PROFILES["mini"]["lr"] != 0.5
    assert experiment(profile="paper", method="local_head").lr == 1e-3  # official, not tuned


@pytest.mark.parametrize("method", METHODS)
def test_full_is_mini_on_all_training_images(method):
    """What was tuned on mini holds in full; all are tested on the same images, and none of these is a server's."""
    mini, full = (experiment(profile=profile, method=method, dataset="cifar100") for profile in ("mini", "full"))
    assert (full.images_per_class, full.test_images_per_class, full.epochs) == (None, 80, 1)
    free = set(PROFILES["mini"]) | set(PROFILES["full"]) | {"profile"} | set(METHODS[method].sizes.get("mini", {}))
    same = set(fields()) - free | set(METHODS[method].tuned)
    assert {name: getattr(full, name) for name in same} == {name: getattr(mini, name) for name in same}
    surrogate = METHODS[method].surrogate
    assert surrogate is None or full.test_images_per_class + getattr(full, surrogate) == 100


def test_what_a_method_needs_smaller_is_a_value_of_the_profile_for_that_method_only():
    assert experiment(profile="mini", method="fedmgp").mgp_surrogate_per_class == 1
    assert (
        experiment(profile="mini", method="fed_lscl").mgp_surrogate_per_class
        == experiment(profile="paper", method="fedmgp").mgp_surrogate_per_class
        == 20
    )
    assert experiment(profile="mini", method="fedmgp", mgp_surrogate_per_class=2).overrides() == {
        "mgp_surrogate_per_class": 2
    }


def test_the_name_has_every_override_and_the_seed():
    config = experiment(profile="mini", dataset="cifar100", rank=16, o2d="sgd", seed=1999)
    assert config.overrides() == {"o2d": "sgd", "rank": 16}
    assert config.name == f"cifar100--fed_lscl--o2d=sgd--rank=16--s1999--{config.digest}"


def test_a_value_equal_to_the_profiles_is_no_override():
    assert experiment(profile="smoke", rank=4, clients=3).overrides() == {}


def test_the_name_is_one_file_name():
    config = experiment(foundation="hub/user/model")
    assert "/" not in config.name
    names = [name for name in fields() if name not in {"method", "dataset", "profile", "data_dir", "weights"}]
    other = {name: other_value(name, getattr(experiment(), name)) for name in names}
    many = [experiment(dataset="folder", **other), experiment(cnn=",".join(["tiny"] * 99))]
    again = experiment(cnn=",".join(["tiny"] * 98))
    assert all(len(one.name) <= 200 for one in many) and many[1].name != again.name
    assert many[1].name.startswith("glyphs--fed_lscl--cnn=tiny,") and many[1].name.endswith(f"--s42--{many[1].digest}")


@pytest.mark.parametrize("dataset", ["glyphs", "cifar100"])
def test_images_of_one_size_have_no_other(dataset, one_line):
    assert experiment(dataset=dataset, image_size=32) == experiment(dataset=dataset)
    for size in (16, 64):
        with pytest.raises(LsclError) as caught:
            experiment(dataset=dataset, image_size=size)
        one_line(caught, f"image_size = {size}: images of {dataset} have 32 pixels a side")


def test_the_digest_of_a_folder_is_filled_in_or_checked(smoke, tree, one_line):
    config = smoke()
    assert (
        experiment(profile="smoke", dataset="folder", data_dir=tree, image_size=16, folder_digest=config.folder_digest)
        == config
    )
    assert (
        config.name.startswith(f"folder-{config.folder_digest[:8]}--fed_lscl--image_size=16--s42")
        and config.source == f"folder-{config.folder_digest[:8]}"
    )
    assert (
        smoke(image_size=8).folder_digest
        != config.folder_digest
        == smoke(method="glfc", images_per_class=5).folder_digest
    )
    with pytest.raises(LsclError) as caught:
        smoke(folder_digest="0" * 16)
    one_line(caught, tree, "holds other images", config.folder_digest, "folder_digest = 0000000000000000")
    with pytest.raises(LsclError) as caught:
        experiment(folder_digest="0" * 16)
    one_line(caught, "folder_digest = '0000000000000000'", "only dataset = folder")
    assert experiment(profile="smoke", dataset="folder").folder_digest is None  # without a folder nothing can be known


def test_options_of_other_systems_are_named():
    assert readers("glfc_memory") == ("glfc",) and readers("o2d_lr") == ("fed_lscl", "fed_lscl_ridge")
    assert readers("head") == ("fedavg_vit", "fedmgp") and set(readers("prompt_clip")) - set(
        readers("prompt_batchwise")
    ) == {"fedmgp"}
    assert {"lorm", "pilora", "glfc"} < set(readers("head_merge")) and "fed_lscl" not in readers("head_merge")
    assert readers("seed") == tuple(METHODS)
    assert readers("lr") == readers("rounds") == tuple(name for name, kind in METHODS.items() if kind.trains)
    assert not METHODS["fed_ncm"].trains
    assert (
        "fed_lscl" in readers("cnn")
        and "fed_lscl" in readers("foundation")
        and not set(readers("cnn")) & {"l2p", "local_head"}
    )
    assert "fedprox" in readers("cnn_size") and "fedprox" not in readers("weights")


def test_every_option_has_a_reader():
    assert all(readers(name) for name in fields())
    assert set(name for names in NEEDS.values() for name in names) < set(Experiment.model_fields)


def test_an_option_that_no_system_reads_is_one_line(one_line):
    check_options(["lr", "rank"], ["lorm", "pilora"])
    with pytest.raises(LsclError) as caught:
        check_options(["lr", "rank"], ["lorm", "fedavg"])
    one_line(
        caught, "rank is an option of fed_lscl, pilora, local_lora, fed_lscl_ridge, not of fedavg, lorm: leave it out"
    )


def test_none_lifts_the_limits_of_a_profile():
    config = experiment(profile="mini", dataset="cifar100", images_per_class=None, test_images_per_class=None)
    assert (config.images_per_class, config.test_images_per_class) == (None, None)
    assert config.overrides() == {"images_per_class": None, "test_images_per_class": None}


def test_none_elsewhere_leaves_the_value_of_the_profile():
    assert experiment(profile="smoke", batch=None, seed=None) == experiment(profile="smoke")


def test_text_from_the_command_line_becomes_numbers():
    config = experiment(rank="8", lr="0.01", normalize="false")
    assert (config.rank, config.lr, config.normalize) == (8, 0.01, False)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        experiment().rank = 8


def test_a_config_survives_json(tmp_path):
    config = experiment(profile="smoke", data_dir=tmp_path, o2d="sgd")
    assert Experiment(**json.loads(config.model_dump_json())) == config


def test_a_local_checkpoint_is_named_by_its_digest_not_by_its_place(tmp_path, one_line):
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_bytes(b"weights")
    first, second = (experiment(weights=tmp_path / name) for name in ("a.npz", "b.npz"))
    assert first.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert first.digest == second.digest != experiment().digest
    (tmp_path / "b.npz").write_bytes(b"other weights")
    assert experiment(weights=tmp_path / "b.npz").digest != first.digest
    with pytest.raises(LsclError) as caught:
        experiment(weights=tmp_path / "b.npz", weights_sha256=first.weights_sha256)
    one_line(caught, tmp_path / "b.npz", "SHA-256", first.weights_sha256)
    with pytest.raises(LsclError) as caught:
        experiment(weights=tmp_path / "gone.npz")
    one_line(caught, tmp_path / "gone.npz", "No such file")


# ---- configs as objects


def test_a_config_survives_a_pickle_with_what_was_given(tree):
    for one in (experiment(), experiment(profile="smoke", method="fedavg", dataset="folder", data_dir=tree, rounds=3)):
        again = pickle.loads(pickle.dumps(one))
        assert again == one and hash(again) == hash(one) and type(again) is type(one)
        assert again.model_fields_set == one.model_fields_set and again.name == one.name
        assert copy.deepcopy(one) == one == copy.copy(one)
    with ProcessPoolExecutor(1, get_context("spawn")) as others:
        assert others.submit(getattr, experiment(seed=3), "seed").result() == 3
    stored = io.BytesIO()
    torch.save(experiment(), stored)
    stored.seek(0)
    assert torch.load(stored, weights_only=False) == experiment()


def test_a_pickle_of_a_system_that_is_not_registered_is_one_line(toys, one_line):
    ours, theirs = (pickle.dumps(experiment(**values)) for values in ({"seed": 5}, toys))
    METHODS.remove("toy")
    assert pickle.loads(ours) == experiment(seed=5)  # the parameters of the toy decide nothing
    with pytest.raises(LsclError) as caught:
        pickle.loads(theirs)
    one_line(caught, "cannot read a pickled config", "'toy'", "register")
    register(ToySystem)


def test_configs_of_equal_values_are_equal_whatever_is_registered_in_between(toys):
    after = experiment(seed=5)
    other = experiment(seed=5, toy_scale=2.0)
    METHODS.remove("toy")
    before = experiment(seed=5)
    register(ToySystem)
    assert before == after == before and hash(before) == hash(after) and {before: 1}[after] == 1
    assert before != other and other != before and after != other
    assert before != experiment(seed=6) and before != "a text" and before != 5


@pytest.mark.parametrize("name", ["method", "dataset", "profile", "seed", "lr", "data_dir"])
def test_none_is_the_value_of_the_profile(name):
    assert experiment(**{name: None}) == experiment()


def test_an_unknown_parameter_that_is_none_is_still_unknown(one_line):
    with pytest.raises(LsclError) as caught:
        experiment(profil=None)
    one_line(caught, "unknown parameter 'profil'", "did you mean 'profile'?")


def test_the_help_of_device_says_that_a_macs_gpu_is_refused_and_why():
    assert "mps, a Mac's GPU, is refused: it has no float64" in fields()["device"].description
