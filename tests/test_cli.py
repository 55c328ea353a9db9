"""Bad input on the command line is one line on stderr and exit code 2; good input works."""

import json

import pytest
from made_records import record

from lscl import cli
from lscl.experiments import records
from lscl.experiments.sweeps import SWEEPS, TABLE1


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
        (("sweep", "table1", *SMOKE, "--methods", "fed_lscl,local_hed"), "did you mean 'local_head'?"),
        (("table", "--profile", "colab"), "no records of profile colab"),
        (("table", "--profile", "big"), "unknown profile 'big'"),
        (("reproduce", "dmo"), "did you mean 'demo'?"),
        (("node", "--client", "0", "--link", "localhost:1", "--authority", "no/ca.crt", "--key", "no/key"), "no file no/ca.crt"),
        (("pretrain", "--data-dir", "no/such/folder"), "no data folder no/such/folder"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(capsys, words, says):
    code, _, err = call(capsys, *words)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("lscl: ")


def test_ctrl_c_is_no_traceback_and_exit_code_130(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("lscl.experiments.doctor.doctor", stop)
    assert call(capsys, "doctor") == (130, "", "")


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
    assert records.read(path)["seed"] == 5


def test_a_record_of_another_schema_is_refused_by_name(capsys):
    code, out, _ = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "6")
    path = records.Path(out.split(": ")[1].splitlines()[0])
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema": 99}))
    code, _, err = call(capsys, "run", *SMOKE, "--method", "local_head", "--seed", "6")
    assert code == 2
    assert "has schema 99" in err


def test_sweep_list_only_prints_the_plan(capsys):
    code, out, _ = call(capsys, "sweep", "table1", *SMOKE, "--seeds", "901,902", "--list")
    assert code == 0
    assert out.count("missing") == 2 * len(TABLE1)


def test_the_help_names_every_sweep(capsys):
    _, out, _ = call(capsys, "sweep", "--help")
    assert all(name in out for name in SWEEPS)


def test_sweep_of_some_methods(capsys):
    code, out, _ = call(capsys, "sweep", "table1", *SMOKE, "--seeds", "901", "--methods", "local_head, fedavg_vit", "--list")
    assert code == 0
    assert [line.split("--")[1] for line in out.splitlines()] == ["local_head", "fedavg_vit"]


def test_one_table_for_each_set_of_images(capsys, published):
    folder = records.folder("mini")
    folder.mkdir(parents=True)
    for one in (record(), record(data_digest="d2", values={"images_per_class": 5})):
        (folder / f"{one['name']}.json").write_text(json.dumps({**one, "config": {**one["config"], "clients": 5}}))
    code, out, err = call(capsys, "table")
    assert code == 0, err
    assert out.count("cifar100, profile mini") == 2
    assert "data d1;" in out and "data d2;" in out


def test_data_show_prints_every_client_and_task(capsys):
    code, out, _ = call(capsys, "data", "show", *SMOKE)
    assert code == 0
    assert sum(line.startswith("client ") for line in out.splitlines()) == 6


def test_a_node_without_flower_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    file = tmp_path / "file"
    file.touch()
    code, _, err = call(capsys, "node", "--client", "0", "--link", "localhost:1", "--authority", str(file), "--key", str(file))
    assert code == 2 and "needs the extra flower" in err and len(err.strip().splitlines()) == 1
