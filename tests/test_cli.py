"""Bad input on the command line is one line on stderr and exit code 2; good input works."""

import io
import json
import re
import shutil
import sys

import pytest
import typer
from made_records import record
from PIL import Image
from tests_root import ROOT

from lscl import cli
from lscl.config import experiment, fields
from lscl.data.partition import partition
from lscl.data.sources import load
from lscl.experiments import records
from lscl.experiments.sweeps import main_table, named_sets
from lscl.models.probe import probe


def call(capsys, *words):
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    out = capsys.readouterr()
    return end.value.code, out.out, out.err


SMOKE = ("--profile", "smoke")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "--method", "fed_lsl"), "did you mean 'fed_lscl'?"),
        (("run", "--dataset", "cifar10"), "did you mean 'cifar100'?"),
        (("run", "--profile", "mni"), "did you mean 'mini'?"),
        (("run", *SMOKE, "--foundation", "vit_bas_patch16_224"), "did you mean 'vit_base_patch16_224'?"),
        (("run", *SMOKE, "--cnn", "resnet81"), "did you mean 'resnet18'?"),
        (("run", *SMOKE, "--lr", "-1"), "lr = '-1'"),
        (("run", *SMOKE, "--lr", "nan"), "lr = 'nan'"),
        (("run", *SMOKE, "--clients", "0"), "clients = '0'"),
        (("run", *SMOKE, "--rank", "0"), "rank = '0'"),
        (("run", *SMOKE, "--rounds", "2.5"), "rounds = '2.5'"),
        (("run", *SMOKE, "--seed", "-1"), "seed = '-1'"),
        (("run", *SMOKE, "--o2d", "magic"), "o2d = 'magic'"),
        (("run", *SMOKE, "--block", "12"), "block = 12"),
        (("run", *SMOKE, "--clients", "60"), "but glyphs has 200"),
        (("run", *SMOKE, "--images-per-class", "1000"), "1000 per class were asked for"),
        (("run", *SMOKE, "--dataset", "folder"), "needs data_dir"),
        (("run", *SMOKE, "--dataset", "cifar100", "--data-dir", "no/such/folder"), "no data folder no/such/folder"),
        (("run", *SMOKE, "--device", "cuda"), "no CUDA GPU"),
        (("sweep", "tabel1", *SMOKE), "did you mean 'table1'?"),
        (("sweep", "table1", *SMOKE, "--seeds", "1,x"), "seeds = '1,x'"),
        (("sweep", "table1", *SMOKE, "--seeds", "2,1,01"), "seeds = '2,1,01': 1 is there more than once"),
        (("plan", *SMOKE, "--seeds", "1,1"), "seeds = '1,1': 1 is there more than once"),
        (("privacy", *SMOKE, "--seeds", "1,1"), "seeds = '1,1': 1 is there more than once"),
        (("sweep", "table1", *SMOKE, "--methods", "fed_lscl,local_hed"), "did you mean 'local_head'?"),
        (("table", "--profile", "colab"), "no records of profile colab"),
        (("table", "--profile", "big"), "unknown profile 'big'"),
        (("reproduce", "dmo"), "did you mean 'demo'?"),
        (
            ("node", "--client", "0", "--link", "localhost:1", "--authority", "no/ca.crt", "--key", "no/key"),
            "no file no/ca.crt",
        ),
        (("pretrain", "--data-dir", "no/such/folder"), "no data folder no/such/folder"),
        (("pretrain", "--data-dir", "no/such/folder", "--network", "resnet18"), "unknown network 'resnet18'"),
        (("federate", *SMOKE, "--min-clients", "4"), "min-clients = 4: the run has 3 clients"),
        (("federate", *SMOKE, "--min-clients", "-1"), "min-clients = -1"),
        (("federate", *SMOKE, "--min-clients", "two"), "Invalid value for '--min-clients'"),
        (("federate", *SMOKE, "--timeout", "nan"), "timeout = nan"),
        (("federate", *SMOKE, "--timeout", "inf"), "timeout = inf"),
        (("federate", *SMOKE, "--timeout", "0"), "timeout = 0"),
        (("federate", *SMOKE, "--timeout", "-600"), "timeout = -600"),
        (("federate", *SMOKE, "--timeout", "1e300"), "timeout = 1e+300"),
        (("federate", *SMOKE, "--timeout", "soon"), "Invalid value for '--timeout'"),
        (("federate", *SMOKE, "--max-mb", "nan"), "max-mb = nan"),
        (("federate", *SMOKE, "--max-mb", "inf"), "max-mb = inf"),
        (("federate", *SMOKE, "--max-mb", "0"), "max-mb = 0"),
        (("federate", *SMOKE, "--max-mb", "-1"), "max-mb = -1"),
        (("federate", *SMOKE, "--max-mb"), "requires an argument"),
        (("federate", *SMOKE, "--rounds", "0"), "rounds = '0'"),
        (("federate", *SMOKE, "--simulation", "--link", "here"), "leave out one of the two"),
        (("node", "--client", "0"), "Missing option '--link'"),
        (("run", *SMOKE, "surplus"), "surplus"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(capsys, words, says):
    code, _, err = call(capsys, *words)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("lscl: ")


def test_ctrl_c_is_no_traceback_and_exit_code_130(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lscl.experiments.doctor.doctor", stop)
    assert call(capsys, "doctor") == (130, "", "")


FOREIGN = {
    ("fed_lscl", "--glfc-memory", "5"): "glfc_memory is an option of glfc, not of fed_lscl",
    ("fedavg", "--rank", "8"): "rank is an option of fed_lscl, pilora, local_lora, fed_lscl_ridge, not of fedavg",
    ("fedavg", "--weights", __file__): "weights is an option of fed_lscl, fedavg_vit",
    (
        "local_head",
        "--cnn",
        "resnet18",
    ): "cnn is an option of fed_lscl, fedavg, fedprox, glfc, target, mfcl, fed_lscl_ridge, not of local_head",
    ("local_head", "--block", "1"): "block is an option of fed_lscl, local_lora, fed_lscl_ridge, not of local_head",
    ("l2p", "--o2d", "none"): "o2d is an option of fed_lscl, fed_lscl_ridge, not of l2p",
    ("lorm", "--prompt-batchwise", "true"): "prompt_batchwise is an option of l2p, dualprompt, not of lorm",
}


@pytest.mark.parametrize("command", ["run", "federate"])
@pytest.mark.parametrize("words", FOREIGN)
def test_an_option_of_another_system_is_one_line_that_names_it(capsys, places, command, words):
    method, *option = words
    code, out, err = call(capsys, command, *SMOKE, "--method", method, *option)
    assert (code, out) == (2, "") and FOREIGN[words] in err and len(err.strip().splitlines()) == 1
    assert not places.exists()


def test_in_a_set_of_runs_an_option_is_given_to_those_that_read_it(capsys):
    methods = ("--methods", "local_head,local_lora", "--list")
    code, plain, _ = call(capsys, "sweep", "table1", *SMOKE, "--seeds", "901", *methods)
    code, out, _ = call(capsys, "sweep", "table1", *SMOKE, "--seeds", "901", *methods, "--rank", "2")
    assert code == 0
    (head, lora), (same, other) = plain.splitlines(), out.splitlines()
    assert head == same and lora != other and "rank=2" in other
    code, _, err = call(capsys, "sweep", "table1", *SMOKE, *methods, "--lorm-rank", "2")
    assert code == 2 and "lorm_rank is an option of lorm, not of local_head, local_lora: leave it out" in err


@pytest.mark.parametrize("words", [("--image-size", "64"), ("--dataset", "cifar100", "--image-size", "64")])
def test_images_of_one_size_cannot_have_another_one(capsys, words):
    code, _, err = call(capsys, "run", *SMOKE, *words)
    assert (
        code == 2 and "image_size = 64: images of" in err and "32 pixels" in err and len(err.strip().splitlines()) == 1
    )


def test_two_folders_print_their_own_accuracies(capsys, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    for path in (tmp_path / "other" / "train").glob("*/*"):  # the classes change places
        path.rename(path.with_name(f"x{path.name}"))
    for k in range(7):
        one, two = ((tmp_path / "other" / "train" / f"class{n:02d}") for n in (k, 13 - k))
        one.rename(tmp_path / "kept"), two.rename(one), (tmp_path / "kept").rename(two)
    words = ("run", *SMOKE, "--method", "local_head", "--dataset", "folder", "--image-size", "16", "--data-dir")
    outs = [call(capsys, *words, str(folder))[1] for folder in (tree, tmp_path / "other", tree, tmp_path / "other")]
    assert outs[:2] == outs[2:] and outs[0].splitlines()[1:] != outs[1].splitlines()[1:]
    code, _, err = call(capsys, *words, str(tmp_path / "nowhere"))
    assert code == 2 and "no data folder" in err and len(err.strip().splitlines()) == 1


def test_other_threads_than_those_of_the_record_are_one_line(capsys):
    words = ("run", *SMOKE, "--method", "local_head", "--seed", "8")
    assert call(capsys, *words, "--threads", "2")[0] == 0
    assert call(capsys, *words)[0] == 0
    code, _, err = call(capsys, *words, "--threads", "1")
    assert code == 2 and "threads = 2, this call asks for threads = 1" in err and len(err.strip().splitlines()) == 1


def test_unknown_option_names_the_nearest(capsys):
    code, _, err = call(capsys, "run", "--method", "fed_lscl", "--rankk", "3")
    assert code == 2
    assert "--rank" in err


def test_run_writes_a_record_and_reads_it_the_second_time(capsys):
    code, first, _ = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "5")
    assert code == 0
    code, second, err = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "5")
    assert (code, second, err) == (0, first, "")
    path = records.Path(first.split(": ")[1].splitlines()[0])
    assert records.read_record(path)["seed"] == 5


def test_a_record_of_another_schema_is_refused_by_name(capsys):
    code, out, _ = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "6")
    path = records.Path(out.split(": ")[1].splitlines()[0])
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "schema": 99}), encoding="utf-8")
    code, _, err = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "6")
    assert code == 2
    assert "has schema 99" in err


def test_sweep_list_only_prints_the_plan(capsys):
    code, out, _ = call(capsys, "sweep", "table1", *SMOKE, "--seeds", "901,902", "--list")
    assert code == 0
    assert out.count("missing") == 2 * len(main_table())


def test_the_help_names_every_sweep(capsys):
    _, out, _ = call(capsys, "sweep", "--help")
    assert all(name in out for name in named_sets())


def test_sweep_of_some_methods(capsys):
    code, out, _ = call(
        capsys, "sweep", "table1", *SMOKE, "--seeds", "901", "--methods", "local_head, fedavg_vit", "--list"
    )
    assert code == 0
    assert [line.split("--")[1] for line in out.splitlines()] == ["local_head", "fedavg_vit"]


def test_one_table_for_each_set_of_images(capsys, published):
    folder = records.folder("mini")
    folder.mkdir(parents=True)
    for one in (record(clients=5), record(data_digest="d2", clients=5, values={"images_per_class": 5})):
        (folder / f"{one['name']}.json").write_text(json.dumps(one))
    code, out, err = call(capsys, "table")
    assert code == 0, err
    assert out.count("cifar100, profile mini") == 2
    assert "data d1;" in out and "data d2;" in out


def test_a_plan_without_a_set_reads_every_option(capsys):
    words = ("plan", *SMOKE, "--card", "t4", "--methods", "fed_ncm,fed_lscl")
    _, plain, _ = call(capsys, *words)
    for option in (("--seeds", "1,2"), ("--clients", "2"), ("--rank", "2"), ("--foundation", "mini")):
        code, out, err = call(capsys, *words, *option)
        assert (code, err) == (0, "") and out != plain, option


class Reads:
    """A config that remembers which of its fields are read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getattr__(self, name):
        if name in fields():
            self.read.add(name)
        return getattr(self.config, name)

    def model_copy(self, update):
        self.config = self.config.model_copy(update=update)
        return self


def test_data_show_and_probe_have_the_options_that_they_read(tree, monkeypatch):
    shown, probed = (
        Reads(experiment(profile="smoke", dataset="folder", data_dir=tree, image_size=16, duplicates="drop"))
        for _ in range(2)
    )
    partition(shown, load(shown))
    assert shown.read <= set(cli.PARTITION) and {"clients", "eval_split", "folder_digest"} <= shown.read
    probe(probed, 6)
    assert probed.read - {"images_per_class", "test_images_per_class", "profile"} <= set(cli.PROBE)
    assert {"normalize", "vit_size", "threads", "weights_sha256"} <= probed.read | {"threads"}
    assert set(cli.PARTITION) | set(cli.PROBE) <= set(fields())


def test_data_show_prints_every_client_and_task(capsys):
    code, out, _ = call(capsys, "data", "show", *SMOKE)
    assert code == 0
    assert sum(line.startswith("client ") for line in out.splitlines()) == 6


def test_data_show_says_the_truth_about_equal_pixels(capsys, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    for number, label in enumerate((3, 4, 5)):
        shutil.copy(
            tmp_path / "tree" / "test" / "class03" / "006.png",
            tmp_path / "tree" / "train" / f"class{label:02d}" / f"more{number}.png",
        )
    words = (
        "data",
        "show",
        *SMOKE,
        "--dataset",
        "folder",
        "--data-dir",
        str(tmp_path / "tree"),
        "--images-per-class",
        "none",
    )
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert "no position on two clients" in out and "no image" not in out
    assert (
        "equal pixels: 1 group of 4 images; "
        "1 within train, 0 within test, 1 across train and test, 1 with different classes\n"
    ) in out
    code, out, err = call(capsys, *words, "--duplicates", "drop")
    assert code == 0 and "equal pixels: none\n" in out
    assert err == (
        "duplicates = drop: 3 training images left out, "
        "3 of them equal to a test image, 0 under several classes, 0 repeated\n"
    )


NAMES = ("new\nline", "esc\x1b[31m", "\u2654 \u00e9", "bidi\u202e", "l\udce9", "x" * 200)


@pytest.fixture
def named(tree, tmp_path):
    """The tree with class names that no output should show as they are, and a file that is no image beside each."""
    shutil.copytree(tree, tmp_path / "tree")
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            path = tmp_path / "tree" / split / name
            (tmp_path / "tree" / split / f"class{number:02d}").rename(path)
            (path / f"{name[:99]}.txt").write_text("")
    Image.new("RGB", (16, 16)).save(tmp_path / "tree" / "train" / NAMES[0] / "more.png")
    return tmp_path / "tree"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_are_shown_as_escapes_in_every_encoding(monkeypatch, named, encoding):
    for words in (
        ("data", "show", *SMOKE, "--dataset", "folder", "--data-dir", str(named)),
        ("data", "check", str(named)),
    ):
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
            with pytest.raises(SystemExit) as end:
                cli.main(list(words))
            outputs = [
                stream.flush() or stream.buffer.getvalue().decode(encoding) for stream in (sys.stdout, sys.stderr)
            ]
        assert end.value.code == 0
        assert all(one.isprintable() or one == "\n" for text in outputs for one in text)
        text = "".join(outputs)
        assert r"new\nline" in text
        if words[1] == "show":
            assert all(part in text for part in (r"esc\x1b[31m 6", r"bidi\u202e 6", r"l\udce9 6"))
            assert "x" * 59 + ("\\u2026" if encoding == "ascii" else "…") in text
            assert "x" * 60 not in outputs[0]


@pytest.mark.parametrize(
    "words", [("--help",), ("run", "--help"), ("doctor",), ("sweep", "table1", *SMOKE, "--list")], ids=str
)
def test_no_command_fails_on_an_output_without_its_letters(monkeypatch, words):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert end.value.code == 0


def test_an_error_line_shows_control_characters_as_escapes(capsys, tmp_path):
    code, _, err = call(capsys, "data", "check", str(tmp_path / "no\x1b[31m\u202e\udce9"))
    assert code == 2 and r"no\x1b[31m\u202e\udce9" in err and len(err.splitlines()) == 1


def test_a_node_without_flower_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    file = tmp_path / "file"
    file.touch()
    code, _, err = call(
        capsys, "node", "--client", "0", "--link", "localhost:1", "--authority", str(file), "--key", str(file)
    )
    assert code == 2 and "needs the extra flower" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("--method", "fed_lscl", "--o2d", "none"), "o2d", "none"),
        (("--method", "fedavg", "--augment", "none"), "augment", "none"),
        (("--method", "fedavg", "--stop-after", "none"), "stop_after", None),
    ],
)
def test_none_is_no_limit_but_where_it_is_a_choice_it_is_that_choice(capsys, monkeypatch, words, name, value):
    """It stood for the profile's value there, so that `--o2d none` ran O2D."""
    asked = []
    monkeypatch.setattr("lscl.experiments.run.run", lambda config, **_: asked.append(config) or sys.exit(0))
    call(capsys, "run", "--profile", "mini", "--dataset", "glyphs", *words)
    assert getattr(asked[0], name) == value


def test_backbones_are_tried_and_a_refusal_is_a_result(capsys, places):
    code, out, _ = call(capsys, "backbones", "vit_tiny_patch16_224", "resnet18", "--vit-size", "32")
    first, second = out.splitlines()
    assert code == 0 and first.startswith("vit_tiny_patch16_224: works with every system (32 pixels, 5 tokens")
    assert second.startswith("resnet18: refused: ") and not (places / "results").exists()
    code, _, err = call(capsys, "backbones", "tiny", "--store")
    assert code == 2 and err.count("\n") == 1 and "store: " in err


def test_a_run_can_be_tracked(capsys, tmp_path):
    code, out, _ = call(capsys, "run", *SMOKE, "--method", "local_head", "--track", str(tmp_path / "board"))
    (folder,) = (tmp_path / "board").iterdir()
    assert code == 0 and out.startswith(folder.name) and [path.name[:7] for path in folder.iterdir()] == ["events."]


def test_a_finished_run_that_is_to_be_tracked_says_that_nothing_is_written(capsys, tmp_path):
    words = ("run", *SMOKE, "--method", "local_head")
    call(capsys, *words)
    code, _, err = call(capsys, *words, "--track", str(tmp_path / "board"))
    assert code == 0 and len(err.splitlines()) == 1
    assert f"track = {tmp_path / 'board'}: nothing is written, no round was left to compute" in err


def test_the_command_line_needs_no_click_of_its_own():
    """Typer has its own copy from 0.26 on, whose exceptions are not click's; both kinds end in one line."""
    text = (ROOT / "lscl" / "cli.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) click\b", text, re.MULTILINE)
    assert issubclass(typer.BadParameter, cli.ClickException) and not issubclass(ValueError, cli.ClickException)
