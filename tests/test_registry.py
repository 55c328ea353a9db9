"""Systems and data sets by registration: ours, those of others, and that everything knows one after one call."""

import ast
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import Field
from tests_root import ROOT
from toy_system import ToySystem, load_toy

import lscl
from lscl import cli, config, registry
from lscl.config import check_options, experiment, fields, readers
from lscl.data.sources import load
from lscl.errors import LsclError
from lscl.experiments import cost_model, records, sweeps
from lscl.experiments.run import run
from lscl.federation.method import FACTS, HeadMerge, Method
from lscl.methods.fedavg import FedAvg
from lscl.publish import method_pages, reference
from lscl.registry import DATASETS, METHODS, ImageSource, Labels, register, register_dataset
from lscl.results.labels import DATASET_LABELS


def call(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    return end.value.code, *capsys.readouterr()


# ---- a system and a data set of others, everywhere


def test_a_registered_system_and_data_set_run_and_resume(toys, in_pieces):
    found = experiment(**toys)
    assert found.lr == 1e-3 and found.toy_scale == 1.0 and found.image_size == 16
    in_pieces(found, rounds=4)
    record = records.find(found)
    assert record["method"] == "toy" and record["dataset"] == "toy_images" and record["config"]["toy_scale"] == 1.0
    assert len(record["system_digest"]) == 16


def test_the_public_face_registers_and_runs(toys):
    assert lscl.register is register and lscl.register_dataset is register_dataset and lscl.LsclError is LsclError
    record = lscl.run(lscl.experiment(**toys, toy_scale=2.0), quiet=True)
    assert record["overrides"] == {"toy_scale": 2.0}
    assert lscl.experiment(**{**toys, "profile": "mini"}).lr == 1e-2  # tuned
    with pytest.raises(AttributeError, match="has no attribute 'registry_of'"):
        _ = lscl.registry_of


def test_it_is_swept_tuned_and_shown_in_the_table(toys, capsys):
    assert ("toy", {}) in sweeps.main_table() and sweeps.main_table()[-1] == ("toy", {})  # behind ours
    values = {name: toys[name] for name in ("dataset", "profile")}
    sweeps.sweep("table1", values, [1, 2], methods=["toy"])
    sweeps.sweep("scales", values, [1])
    sweeps.sweep("tune", values, [], methods=["toy"])
    capsys.readouterr()
    code, out, _ = call(capsys, "table", "--profile", "smoke", "--dataset", "toy_images")
    assert code == 0 and "Toy" in out and "Toy (toy_scale = 2.0)" in out
    assert {sweeps.rows_of(one).get("scales") for one in records.all_records("smoke")} == {
        "scale 1.0",
        "scale 2.0",
        None,
    }
    assert DATASET_LABELS["toy_images"] == "Toy images"


def test_a_plan_says_what_it_does_not_know(toys, capsys):
    words = [
        "plan",
        "table1",
        "--profile",
        "smoke",
        "--dataset",
        "toy_images",
        "--methods",
        "toy,local_head",
        "--card",
        "t4",
        "--seeds",
        "1",
    ]
    code, out, err = call(capsys, *words)
    line, _ = [line for line in out.splitlines() if " toy " in line]  # what it needs, and what it sends
    assert code == 0 and line.split()[2:] == ["1", *["unknown"] * 5, "computed"]
    known = next(line for line in out.splitlines() if " local_head " in line)
    total = next(line for line in out.splitlines() if line.startswith("all on"))
    assert "unknown" not in known and "without toy" in total and "nan" not in out
    assert "memory and disk are not checked for toy" in err and len(err.strip().splitlines()) == 1


def test_costs_are_not_inherited(monkeypatch):
    class Mine(FedAvg):
        name = "mine"

    assert Mine.costs is None and Mine.tuned == {} and Mine.label == "" and Mine.place > FedAvg.place and Mine.cnn
    assert all(name in vars(Mine) for name in FACTS)


def test_pages_of_all_systems_are_made(toys, published):
    text = method_pages.page("toy", [])
    assert (
        "# Toy" in text
        and "`toy_scale`" in text
        and "## Tuning" in text
        and "`toy_scale`" not in method_pages.page("fedavg", [])
    )
    assert "Toy" in set(reference.method_values()["method"]) and "`toy_scale`" in reference.config_table().index
    assert "Toy" in method_pages.overview([])


def test_an_option_of_it_has_a_panel_and_is_refused_elsewhere(toys, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, _ = call(capsys, "run", "--help")
    places = [
        out.index(text)
        for text in ("--seed", "─ Fed-LSCL, Fed-LSCL + ridge ─", "--o2d-lambda", "─ Toy ─", "--toy-scale")
    ]
    assert code == 0 and places == sorted(places)
    code, _, err = call(capsys, "run", "--profile", "smoke", "--method", "fedavg", "--toy-scale", "2")
    assert code == 2 and "toy_scale is an option of toy, not of fedavg" in err and len(err.strip().splitlines()) == 1
    with pytest.raises(LsclError, match="glfc_memory is an option of glfc, not of toy"):
        check_options(["glfc_memory"], ["toy"])


def test_ours_keep_their_digests_and_their_records(smoke, toys):
    before = {
        name: experiment(profile="mini", dataset="cifar100", method=name).digest for name in METHODS if name != "toy"
    }
    record = run(smoke(method="local_head"), quiet=True)
    assert "toy_scale" not in record["config"] and "toy_scale" in fields()
    METHODS.remove("toy")
    assert {name: experiment(profile="mini", dataset="cifar100", method=name).digest for name in METHODS} == before
    assert records.find(smoke(method="local_head")) == record
    register(ToySystem)


def test_a_record_of_a_system_that_is_not_registered_is_one_line(toys, one_line):
    record = run(experiment(**toys), quiet=True)
    path = records.folder("smoke") / f"{record['name']}.json"
    for kind, name, call_it in (
        (METHODS, "toy", "lscl.register makes"),
        (DATASETS, "toy_images", "lscl.register_dataset makes"),
    ):
        entry = kind[name]
        kind.remove(name)
        with pytest.raises(LsclError) as caught:
            records.read_record(path)
        one_line(caught, path, f"'{name}'", "is not registered here", call_it)
        assert ("toy_scale" in str(caught.value)) == (name == "toy")
        kind.add(entry)
    assert records.read_record(path)["name"] == record["name"]


def test_a_record_of_a_system_that_is_not_registered_keeps_no_other_one_out_of_the_table(toys, capsys):
    known = run(experiment(profile="smoke", method="local_head"), quiet=True)
    other = run(experiment(**{**toys, "dataset": "glyphs"}), quiet=True)
    METHODS.remove("toy")
    for _ in range(2):
        assert [one["name"] for one in records.all_records("smoke")] == [known["name"]]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and other["name"] in lines[0] and lines[0].endswith("; it is left out")
    for command, says in (("table", "glyphs, profile smoke"), ("verify", "equal to the bit")):
        code, out, err = call(capsys, command, "--profile", "smoke")
        assert code == 0 and says in out and other["name"] not in err
    code, _, err = call(capsys, "explain", str(records.folder("smoke") / f"{other['name']}.json"))
    assert code == 2 and "'toy'" in err and len(err.splitlines()) == 1
    path = records.folder("smoke") / f"{other['name']}.json"
    path.write_text(path.read_text("utf-8").replace('"seed":42', '"seed":"x"'), "utf-8")
    with pytest.raises(LsclError):  # damaged, too
        records.all_records("smoke")
    register(ToySystem)


def test_another_code_under_the_same_name_never_finds_the_record(toys, monkeypatch, one_line):
    run(experiment(**toys), quiet=True)
    monkeypatch.setattr(registry.inspect, "getsource", lambda kind: f"class {kind.__name__}: ...")
    with pytest.raises(LsclError) as caught:
        run(experiment(**toys), quiet=True)
    one_line(caught, "system_digest", "register the system that it was made with")


def test_other_images_under_the_same_name_never_find_the_record(toys, one_line):
    def brighter(one):
        train, test = load_toy(one)
        return type(train)(255 - train.images, train.labels, train.classes), test

    run(experiment(**toys), quiet=True)
    DATASETS.remove("toy_images")
    register_dataset("toy_images", brighter, pixels=16)
    with pytest.raises(LsclError) as caught:
        run(experiment(**toys), quiet=True)
    one_line(caught, "data_digest", "give the images that it was made from")


# ---- what may be registered


class Other(Method):
    name = "toy"


class Clash(Method):
    name = "clash"

    class Parameters(Method.Parameters):
        glfc_memory: int = Field(1, description="another one")


class Core(Method):
    name = "core"

    class Parameters(Method.Parameters):
        rounds: int = Field(1, description="another one")


class Required(Method):
    name = "required"

    class Parameters(Method.Parameters):
        required_weight: float = Field(description="without a default")


class Everywhere(Method):
    name = "everywhere"

    class Parameters(Method.Parameters):
        profile_values = {"mini": {"lr": 1.0}}  # noqa: RUF012


def with_values(name, given):
    """A system with a field of its own and values for profiles."""
    fields = {
        "__annotations__": {f"{name}_width": int},
        f"{name}_width": Field(8, ge=1, le=64),
        "profile_values": given,
    }
    return type(name, (Method,), {"name": name, "Parameters": type("Parameters", (Method.Parameters,), fields)})


def test_a_system_of_another_package_sets_its_own_fields_by_profile():
    before = {method: experiment(method=method, profile="demo").digest for method in METHODS}
    register(with_values("broad", {"demo": {"broad_width": 2}, ("paper", "cifar100"): {"broad_width": 32}}))
    try:
        made = lambda **values: experiment(method="broad", **values).broad_width
        assert (made(profile="demo"), made(profile="mini"), made(profile="demo", broad_width=3)) == (2, 8, 3)
        assert (made(profile="paper"), made(profile="paper", dataset="cifar100")) == (8, 32)
        assert experiment(method="broad", profile="demo").overrides() == {}
        assert before == {method: experiment(method=method, profile="demo").digest for method in before}
    finally:
        METHODS.remove("broad")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dmo": {"odd_width": 2}}, "'dmo' must be a profile"),
        ({("demo", "glyphs", 1): {"odd_width": 2}}, "must be a profile"),
        ({3: {"odd_width": 2}}, "3 must be a profile"),
        ({"demo": 2}, "'demo' must be a profile"),
        ([1], "None must be a profile"),
        ({"demo": {"lr": 2}}, "lr is no field that Parameters defines"),
        ({"demo": {"rank": 2}}, "rank is no field that Parameters defines"),
        ({"demo": {3: 2}}, "3 is no field"),
        ({"demo": {"odd_width": 0}}, "odd_width = 0: Input should be greater than or equal to 1"),
        ({"demo": {"odd_width": "wide"}}, "odd_width = 'wide'"),
    ],
)
def test_values_of_profiles_that_a_system_cannot_set(given, words, one_line):
    with pytest.raises(LsclError) as caught:
        register(with_values("odd", given))
    one_line(caught, "method 'odd': Parameters.profile_values", words)
    assert "odd" not in METHODS


class Role(Method):
    name, role = "role", "own"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (object, ["takes a class on lscl.federation.method.Method"]),
        (3, ["takes a class"]),
        (type("Nameless", (Method,), {}), ["None: a name has lower-case letters"]),
        (type("Bad", (Method,), {"name": "../up"}), ["'../up': a name has"]),
        (
            type("FedAvg2", (Method,), {"name": "fedavg"}),
            ["method 'fedavg' is lscl.methods.fedavg.FedAvg already", "another name"],
        ),
        (Other, ["method 'toy' is toy_system.ToySystem already"]),
        (Clash, ["'clash'", "glfc_memory has the name of one of glfc"]),
        (Core, ["'core'", "rounds has the name of one that every system has"]),
        (Required, ["required_weight has no default"]),
        (Everywhere, ["'everywhere'", "lr is no field that"]),
        (Role, ["role = 'own'"]),
    ],
    ids=str,
)
def test_what_cannot_be_registered_is_one_line(toys, kind, words, one_line):
    before = list(METHODS)
    with pytest.raises(LsclError) as caught:
        register(kind)
    one_line(caught, *words)
    assert list(METHODS) == before


def test_a_data_set_needs_a_name_of_its_own(toys, one_line):
    with pytest.raises(LsclError) as caught:
        register_dataset("glyphs", load_toy)
    one_line(caught, "data set 'glyphs' is lscl.data.sources._glyphs already")
    with pytest.raises(LsclError) as caught:
        experiment(dataset="toy_imagez")
    one_line(caught, "unknown data set 'toy_imagez'", "did you mean 'toy_images'?")
    with pytest.raises(LsclError) as caught:
        experiment(**{**toys, "image_size": 32})
    one_line(caught, "images of toy_images have 16 pixels a side")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"load": load_toy, "foo": 3}, "unknown field of a data set 'foo' (allowed: label, values, images,"),
        ({"pixel": 16}, "unknown field of a data set 'pixel'; did you mean 'pixels'?"),
        ({"load": 3}, "data set 'good': load = 3: must be a function"),
    ],
)
def test_a_data_set_of_other_facts_is_one_line(given, words, one_line):
    with pytest.raises(LsclError) as caught:
        register_dataset("good", **given)
    one_line(caught, words)
    assert "good" not in DATASETS


def test_the_decorators_give_back_what_they_took(toys):
    register_dataset("toy_images", **{"pixels": 16})(load_toy)
    assert (
        register(ToySystem) is ToySystem
        and DATASETS["toy_images"].label == ""
        and Labels(DATASETS)["toy_images"] == "toy_images"
    )
    assert len(load(experiment(profile="smoke", dataset="toy_images")).classes) == 14


def test_a_cell_that_is_executed_again_replaces_its_class(toys):
    cell = """
class Again(Method):
    name = "again"
    class Parameters(Method.Parameters):
        again_weight: float = Field({}, ge=0, le=9, description="weight")
register(Again)
"""
    for value in (1.0, 2.0):
        exec(cell.format(value), {"Method": Method, "Field": Field, "register": register, "__name__": "__main__"})
        assert experiment(method="again").again_weight == value
    METHODS.remove("again")
    assert "again_weight" not in fields()


def test_a_shared_parameter_belongs_to_all_that_take_its_class():
    class Sharing(Method):
        name = "sharing"
        Parameters = HeadMerge

    register(Sharing)
    assert "sharing" in readers("head_merge") and "sharing" not in readers("prompt_clip")
    METHODS.remove("sharing")


def test_two_studies_of_one_name_are_one_line(toys, one_line):
    class Greedy(Method):
        name = "greedy"
        studies = {"ablations": lambda profile: {}}  # noqa: RUF012

    register(Greedy)
    with pytest.raises(LsclError) as caught:
        sweeps.named_sets()
    METHODS.remove("greedy")
    one_line(caught, "'greedy'", "a set of runs 'ablations' already")


# ---- plug-ins


def fresh(points, monkeypatch):
    """A registry whose group has these entry points."""
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "lscl.methods" else [])
    one = registry.Systems("method", "lscl.methods", "lscl.methods")
    one._entries = dict(METHODS._entries)
    return one


def test_systems_of_other_packages_are_loaded_and_a_broken_one_stops_none(monkeypatch, capsys):
    def broken():
        raise ImportError("No module named 'gone'\nsecond line")

    name = SimpleNamespace(name="somebody-elses")
    points = [
        SimpleNamespace(name="bad", value="gone:Bad", dist=name, load=broken),
        SimpleNamespace(name="worse", value="their:Thing", dist=None, load=lambda: 3),
        SimpleNamespace(name="toy", value="toy_system:ToySystem", dist=name, load=lambda: ToySystem),
    ]
    one = fresh(points, monkeypatch)
    assert list(one)[-1] == "toy" and "fedavg" in one
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "bad = gone:Bad of somebody-elses is left out: No module named 'gone'" in lines[0]
    assert "worse = their:Thing is left out: register takes a class" in lines[1]


def test_a_plug_in_data_set_is_an_image_source(monkeypatch):
    source = ImageSource("theirs", load_toy, label="Theirs")
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [SimpleNamespace(name="theirs", value="x:y", dist=None, load=lambda: source)],
    )
    one = registry.Registry("data set", "lscl.data.sources", "lscl.datasets")
    assert one["theirs"] is source and Labels(one)["theirs"] == "Theirs"


def test_an_installed_package_is_found_by_its_entry_point(tmp_path):
    """In a process of its own: a distribution on the path with an entry point, as pip leaves it."""
    (tmp_path / "theirs.py").write_text(
        "from lscl.federation.method import Method\nclass Theirs(Method):\n    name, label = 'theirs', 'Theirs'\n",
        encoding="utf-8",
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(
        "[lscl.methods]\ntheirs = theirs:Theirs\nbroken = theirs:Gone\n", encoding="utf-8"
    )
    code = "from lscl.config import experiment; print(experiment(method='theirs').name)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("glyphs--theirs--s42--"), done.stderr
    assert "broken = theirs:Gone of theirs is left out" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_config_and_the_help_of_the_command_line_load_no_system():
    code = "import sys, lscl.config, lscl.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# ---- ours


@pytest.mark.parametrize("name", METHODS)
def test_what_a_system_says_of_itself(name):
    kind = METHODS[name]
    assert kind.name == name and kind.label and kind.costs and kind.place < 100 and kind.turn < 100
    assert (kind.citation is None) == (kind.paper_name is None)
    if kind.citation:
        assert kind.citation in kind.__doc__ + sys.modules[kind.__module__].__doc__
        assert f"arXiv:{kind.citation}" in (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert set().union(*kind.sizes.values(), kind.tuned, kind.official, kind.search_space, *kind.rows) <= set(fields())


def test_every_system_has_a_place_of_its_own():
    for fact in ("place", "turn"):
        assert sorted(getattr(kind, fact) for kind in METHODS.values()) == list(range(len(METHODS)))
    assert (
        METHODS.find_role("own") == config.experiment().method == "fed_lscl"
        and METHODS.find_role("floor") == "local_head"
    )


def words_of(path):
    """The names in a module and the words in its strings and comments, without docstrings."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    documented = {id(node.body[0].value) for node in nodes if node.body and isinstance(node.body[0], ast.Expr)}
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    ]
    comments = re.findall(r"#.*", text)
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return strings, {word for part in (*strings, *comments, *modules) for word in re.findall(r"\w+", part)}


OUTSIDE = sorted(
    path for path in (ROOT / "lscl").rglob("*.py") if "methods" not in path.relative_to(ROOT / "lscl").parts[:1]
)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_outside_methods_names_a_system(path):
    """`target` is a word of English, too: it counts as a whole string."""
    strings, words = words_of(path)
    assert not {name for name in METHODS if name in (strings if name == "target" else words)}


def test_a_name_of_a_system_would_be_noticed(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""About fed_lscl."""\nfrom lscl.methods.glfc import X\nOF = {"target": f"run l2p {X}"}  # like lorm\n',
        encoding="utf-8",
    )
    strings, words = words_of(path)
    assert "target" in strings and {"glfc", "l2p", "lorm"} <= words and "fed_lscl" not in words


def test_a_new_system_of_ours_is_one_file(tmp_path):
    """A module in the package of the systems is enough: it is imported with the others, and registers itself."""
    package = tmp_path / "lscl_methods"
    package.mkdir()
    (package / "newcomer.py").write_text(
        "from lscl.federation.method import Method\nfrom lscl.registry import register\n"
        "@register\nclass Newcomer(Method):\n    name = 'newcomer'\n",
        encoding="utf-8",
    )
    code = f"""
import pkgutil, sys
real = pkgutil.iter_modules
def with_one_more(path=None, prefix=""):
    yield from real(path, prefix)
    if prefix == "lscl.methods.":
        sys.modules["lscl.methods"].__path__.append({str(package)!r})
        yield from real([{str(package)!r}], prefix)
pkgutil.iter_modules = with_one_more
from lscl.config import experiment
print(experiment(method="newcomer", profile="mini").name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("glyphs--newcomer--s42--"), done.stderr


def test_records_of_ours_have_no_digest_of_a_system(smoke):
    config = smoke(method="local_head")
    run(config, quiet=True)
    saved = json.loads((records.folder("smoke") / f"{config.name}.json").read_text(encoding="utf-8"))
    assert "system_digest" not in saved and registry.code_of("local_head") is None
    assert cost_model.cost(experiment(profile="demo", method="local_head")).is_known
