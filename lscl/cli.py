"""Run, compare and publish experiments of federated continual learning.

Each command explains its options with --help; bad input is one line on stderr and exit code 2.
"""

import inspect
import io
import os
import sys
from collections.abc import Collection
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from lscl import paths
from lscl.config import PROFILES, Experiment, check_data_dir, check_profile, experiment, fields
from lscl.errors import LsclError, explain, make_printable, pluralize
from lscl.registry import DATASETS, METHODS, Labels

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
# Of click, or of the copy of it that typer has from 0.26 on.
ClickException = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
data_app = typer.Typer(no_args_is_help=True, help="Look at data sets and partitions.")
app.add_typer(data_app, name="data")
config_app = typer.Typer(no_args_is_help=True, help="Look at configs, compare them, and write them to files.")
app.add_typer(config_app, name="config")


# What the commands read that take only some of the config fields.
IMAGES = ("dataset", "profile", "data_dir", "folder_digest", "image_size", "duplicates")
PARTITION = (
    *IMAGES, "images_per_class", "test_images_per_class", "eval_split", "seed", "clients", "tasks", "classes_per_task",
    "private_classes", "dirichlet", "min_share",
)  # fmt: skip
PROBE = (*IMAGES, "foundation", "vit_size", "weights", "weights_sha256", "normalize", "threads")


def config_command(group: typer.Typer, name: str, *leave_out: str, only: Collection[str] = ()):
    """Make a command that has one option per config field and passes them on as the dictionary `values`.

    The options of all systems come first, then a panel for each system. They are made when the command is called,
    so that no system has to be loaded before.

    Args:
        group: the application that gets the command.
        name: the command's name.
        leave_out: config fields that are no options of it.
        only: the config fields that are; empty = all others.
    """

    def taken() -> list[str]:
        return [field for field in fields() if field not in leave_out and (not only or field in only)]

    class ConfigCommand(TyperCommand):
        def get_params(self, ctx: typer.Context) -> list[Any]:
            *own, helping = super().get_params(ctx)
            return [*own, *_options(taken()), helping]

        def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
            left = super().parse_args(ctx, args)
            ctx.obj = {field: ctx.params.pop(field) for field in taken()}
            return left

    def decorate(command):
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "values"]

        def wrapped(ctx: typer.Context, **mine: Any) -> None:
            command(values=_parse(ctx.obj), **mine)

        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        wrapped.__signature__ = inspect.Signature([context, *own])
        wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
        group.command(name, cls=ConfigCommand)(wrapped)
        return command

    return decorate


def _options(names: list[str]) -> list[Any]:
    """The options of fields, as typer makes them of a function's parameters."""

    def carrier(**values: str | None) -> None:
        """Its signature is all that is used."""

    only = inspect.Parameter.KEYWORD_ONLY
    taken = [inspect.Parameter(name, only, default=None, annotation=_option(name)) for name in names]
    carrier.__signature__ = inspect.Signature(taken)
    made = typer.Typer(add_completion=False)
    made.command()(carrier)
    return list(typer.main.get_command(made).params)


def _option(name: str) -> Any:
    """The option of a field, in the panel of the systems that own it."""
    field, labels = fields()[name], Labels(METHODS)
    panel = ", ".join(labels[owner] for owner in METHODS.owners(name)) or None
    text = f"{field.description} [{field.default}]"
    declared = typer.Option("--" + name.replace("_", "-"), help=text, rich_help_panel=panel, show_default=False)
    return Annotated[str | None, declared]


def _parse(given: dict[str, str | None]) -> dict[str, Any]:
    """The config values of the options that were given."""
    from lscl.experiments.config_files import parse_texts

    return parse_texts({name: text for name, text in given.items() if text is not None})


Start = Annotated[
    Path | None, typer.Option("--from", help="a record (.json) or a YAML file whose run it is; options change values")
]
Changes = Annotated[list[str] | None, typer.Option("--set", help="name=value, as the option of that name; repeatable")]
Track = Annotated[
    Path | None,
    typer.Option(help="folder for TensorBoard, which shows the run while it goes on; needs the extra `track`"),
]


def _one(values: dict[str, Any], start: Path | None = None, changes: list[str] | None = None) -> Experiment:
    """The experiment of the command line; options that its system never reads are refused."""
    from lscl.experiments.config_files import config_from, parse_changes

    more = parse_changes(changes or [])
    twice = sorted(set(more) & set(values))
    if twice:
        raise LsclError(f"{twice[0]} is given twice, by --set and by its option: leave one of the two out")
    config, lines = config_from(start, {**values, **more})
    check_data_dir(config.dataset, {**values, **more}.get("data_dir"))
    for line in lines:
        print(f"lscl: {make_printable(line)}", file=sys.stderr)
    return config


@config_command(app, "run")
def run_command(
    values: dict,
    start: Start = None,
    changes: Changes = None,
    write_config: Annotated[
        Path | None, typer.Option("--write-config", help="YAML file to write, from which --from makes this run again")
    ] = None,
    keep_model: Annotated[
        bool, typer.Option("--keep-model", help="keep the trained models next to the record, for lscl predict")
    ] = False,
    keep_payloads: Annotated[
        Path | None,
        typer.Option(
            help="folder for all that travels, as safetensors, per round and client (`lscl plan` gives the size); "
            "none = nothing is kept"
        ),
    ] = None,
    track: Track = None,
) -> None:
    """Run one experiment, or read its record if it is finished; a stopped run resumes after its last finished round."""
    from lscl.experiments import config_files, kept_models, records
    from lscl.experiments.run import run

    config = _one(values, start, changes)
    if write_config is not None:
        config_files.check_writable_config(write_config)
    observer = None if track is None else _tensorboard(track)
    record = run(config, keep_payloads=keep_payloads, keep_model=keep_model, on_round=observer)
    if observer is not None and not observer.written:
        print(f"lscl: track = {track}: nothing is written, no round was left to compute", file=sys.stderr)
    print(f"{record['name']}: {records.folder(record['profile'], record['dirty']) / record['name']}.json")
    _show_accuracy(record)
    if account := record.get("privacy"):
        said = f"epsilon {account['epsilon']:.4g} at delta {account['delta']:g}"
        print(f"  noise: {said} for each {account['unit']}, {pluralize(account['releases'], 'release')}")
    if keep_model:
        print(f"kept {kept_models.model_path(record)}")
    if write_config is not None:
        done = config.model_copy(update={"threads": record["config"]["threads"]})
        print(f"wrote {config_files.write_config(write_config, done, record['device'])}")


def _tensorboard(folder: Path) -> Any:
    from lscl.experiments.watch import TensorBoard

    return TensorBoard(folder)


@app.command("predict")
def predict_command(
    model: Annotated[
        Path, typer.Argument(help="models kept by lscl run --keep-model: the .safetensors file or its card")
    ],
    pictures: Annotated[list[Path], typer.Argument(help="image files")],
    client: Annotated[int, typer.Option(help="the client that classifies, from 0")] = 0,
    task: Annotated[
        int | None,
        typer.Option(help="only the classes of this task compete, from 0; default: all that the client has met"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="how many classes to print")] = 5,
    weights: Annotated[
        Path | None, typer.Option(help="checkpoint of the frozen ViT, for runs with a local one")
    ] = None,
    device: Annotated[str, typer.Option(help="where to compute: auto, cpu or cuda")] = "auto",
    figure: Annotated[Path | None, typer.Option(help="picture file to write: the first image and its scores")] = None,
) -> None:
    """Let a client of a finished run classify image files."""
    from lscl.experiments.prediction import load_model

    found = load_model(model, weights, device).predict(pictures, client, task=task)
    for number, path in enumerate(pictures):
        scores = ", ".join(f"{make_printable(name, 60)} {100 * score:.1f} %" for name, score in found.best(number, top))
        print(f"{make_printable(str(path))}: {scores}")
    if figure is not None:
        from lscl.results.figures import class_scores, save_figure

        print(f"wrote {save_figure(class_scores(found.images[0], found.best(0, top)), figure)}")


@config_command(config_app, "show")
def config_show(values: dict, start: Start = None, changes: Changes = None) -> None:
    """Print every value that decides a run, as YAML that `lscl run --from` reads, and where the value comes from."""
    from lscl.experiments.config_files import config_yaml

    print(config_yaml(_one(values, start, changes)), end="")


@config_command(config_app, "save")
def config_save(
    values: dict,
    file: Annotated[Path, typer.Argument(help="the YAML file to write")],
    start: Start = None,
    changes: Changes = None,
) -> None:
    """Write every value that decides a run to a YAML file; `lscl run --from` reads it."""
    from lscl.experiments.config_files import write_config

    print(f"wrote {write_config(file, _one(values, start, changes))}")


@config_app.command("diff")
def config_diff(
    one: Annotated[Path, typer.Argument(help="a record (.json) or a YAML file")],
    other: Annotated[
        Path | None, typer.Argument(help="another one; default: the values of the first one's profile")
    ] = None,
) -> None:
    """Print the values in which two runs differ, one a line: name, the first, the second."""
    from lscl.experiments.config_files import config_from, different_values

    nowhere = {"data_dir": None, "weights": None}  # a comparison of values needs no images
    first, _ = config_from(one, nowhere)
    names = {name: getattr(first, name) for name in ("method", "dataset", "profile", "seed")}
    second = experiment(**names) if other is None else config_from(other, nowhere)[0]
    found = different_values(first.values_read(), second.values_read())
    for name, here, there in found:
        print(f"{name}: {here} | {there}")
    if not found:
        print("no value differs")


@app.command("explain")
def explain_command(record: Annotated[Path, typer.Argument(help="the file of a record")]) -> None:
    """Print what a record is, how it differs from its profile, where it is used, and how to make it again."""
    from lscl.experiments.records import read_record
    from lscl.publish.explanation import explain_record

    for line in explain_record(read_record(record), record):
        print(line)


def _show_accuracy(record: dict) -> None:
    from lscl.experiments.records import accuracy
    from lscl.federation.metrics import average_so_far, count_tested, current_task

    every = record["config"]["clients"]
    for task, count in enumerate(count_tested(accuracy(record, "task")), 1):
        if count < every:
            print(f"  after task {task}, {count} of {every} clients gave a good test answer: means are over these")
    for mask in record["accuracy"]:
        acc = accuracy(record, mask)
        tasks = " ".join(f"{value:5.1f}" for value in current_task(acc))
        print(f"  mask {mask:4}: current task {tasks} %, all tasks at the end {average_so_far(acc)[-1]:.2f} %")


@config_command(app, "federate")
def federate_command(
    values: dict,
    start: Start = None,
    changes: Changes = None,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="let Flower simulate the nodes with Ray, instead of one process each")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="compute the run in one process, too, and compare the two")
    ] = False,
    min_clients: Annotated[
        int, typer.Option(help="valid answers that an exchange needs, 0 = those of all clients")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(help="seconds that an exchange may take; late answers are left out")
    ] = 600.0,
    max_mb: Annotated[float, typer.Option(help="largest answer of a client in megabytes")] = 512.0,
    link: Annotated[
        str,
        typer.Option(
            help="a SuperLink that runs here already, by its name in Flower's configuration; none = start all"
        ),
    ] = "",
    track: Track = None,
) -> None:
    """Run one experiment as a real federation: a server and a process for each client, TLS, a key for each node.

    Starts all of them on this machine, unless a SuperLink is named. Needs the extra `flower`.
    A stopped run continues after its last finished round.
    """
    from lscl.flower.rules import rules

    config = _one(values, start, changes)
    settings = rules(config, {"min_clients": min_clients, "timeout": timeout, "max_mb": max_mb}).model_dump(
        by_alias=True
    )
    if simulation and link:
        raise LsclError(
            f"simulation and link = {link!r}: a running SuperLink decides what it serves; leave out one of the two"
        )
    if track is not None and link:
        raise LsclError(
            f"track = {track}: a running SuperLink writes where LSCL_TRACK in its own environment says; set it there "
            "and leave out the option"
        )
    if track is not None:
        _tensorboard(track)  # refuses before anything starts
    try:
        from lscl.flower.local import check_link, error_in, federate_locally, submit
        from lscl.flower.node import environment
    except ModuleNotFoundError as error:
        raise LsclError(
            f"no package {error.name}: lscl federate needs the extra flower, pip install 'fed-lscl[flower]'"
        ) from None
    from lscl.experiments.records import differing_entries, find
    from lscl.experiments.run import run
    from lscl.models.cache import limit_bytes

    limit_bytes()  # a bad LSCL_CACHE_GB is refused before any work
    if link:
        check_link(link)
    alone = find(config) if compare else None
    if alone and config.threads is None:  # the record's threads, or the two runs would differ
        config = config.model_copy(update={"threads": alone["config"]["threads"]})

    def show(line: str) -> None:
        failed = error_in(line) or "Error" in line or "ERROR" in line
        if failed or line.startswith(f"{config.method} {config.dataset}"):
            print(line, file=sys.stderr, flush=True)

    record = (
        submit(config, settings, show, link, environment())
        if link
        else federate_locally(config, simulation, settings, show, track)
    )
    print(f"{record['name']}: {paths.results() / 'federation' / 'runs' / record['name']}.json")
    _show_accuracy(record)
    if compare:
        alone = run(config.model_copy(update={"threads": record["config"]["threads"]}))
        differs = differing_entries(record, alone)
        print(
            "in one process: "
            + (
                f"differs in {', '.join(differs)}"
                if differs
                else "every accuracy and every payload byte count is the same"
            )
        )
        _show_accuracy(alone)


@app.command("node")
def node_command(
    client: Annotated[int, typer.Option(help="the client's number, from 0")],
    link: Annotated[str, typer.Option(help="host:port of the SuperLink")],
    authority: Annotated[Path, typer.Option(help="certificate of the authority that signed the SuperLink's")],
    key: Annotated[
        Path, typer.Option(help="private key of this node; its public key is registered as client0, client1, ...")
    ],
    port: Annotated[int, typer.Option(help="a port of this machine for the node's own processes")] = 9094,
) -> None:
    """Run one client of a federation over several machines until stopped; a SuperNode that ends is started again.

    Needs the extra `flower`. LSCL_PRIVATE is the folder of the client's state, LSCL_DATA_DIR that of its images.
    """
    from lscl.flower.node import checked_node, serve

    serve(checked_node({"client": client, "link": link, "authority": authority, "key": key, "port": port}))


Seeds = Annotated[str | None, typer.Option(help="seeds with commas; default: 42,1999,2024, and for tune its own seed")]


@config_command(app, "sweep", "method", "seed")
def sweep_command(
    values: dict,
    name: Annotated[
        str,
        typer.Argument(
            help="named set of runs: table1, ablations, blocks, buffers, cnns, regimes, larger_rate, repaired, tune"
        ),
    ] = "table1",
    seeds: Seeds = None,
    methods: Annotated[str, typer.Option(help="only these methods, with commas; default: all")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="only list the runs and which of them are missing")] = False,
    task_index: Annotated[
        int, typer.Option(min=0, help="share of the runs to compute, from 0: the job number of a batch system")
    ] = 0,
    task_count: Annotated[int, typer.Option(min=1, help="number of shares that the runs are divided into")] = 1,
) -> None:
    """Compute the missing runs of a named set; finished runs are skipped.

    Several of these commands may work on one results folder: each takes runs that no other one is computing.
    """
    from lscl.experiments import sweeps

    check_data_dir(values.get("dataset", "glyphs"), values.get("data_dir"))
    sweeps.sweep(name, values, _seeds_of(name, seeds), list_only, _names(methods), task_index, task_count)


@config_command(app, "plan", "method", "seed")
def plan_command(
    values: dict,
    name: Annotated[
        str, typer.Argument(help="named set of runs, as for sweep; default: what the results of the profile need")
    ] = "",
    seeds: Annotated[
        str | None,
        typer.Option(help="seeds with commas; default: 42,1999,2024, and without a set those of the results"),
    ] = None,
    methods: Annotated[str, typer.Option(help="only these methods, with commas; default: all")] = "",
    card: Annotated[
        str,
        typer.Option(
            help="a GPU to plan for (t4, v100, a100, rtx3090, h100, h200), or all; none = this machine, measured"
        ),
    ] = "",
) -> None:
    """Print the memory, disk, download, FLOPs and hours of runs; refuse runs that this machine cannot hold.

    Each row says whether its hours follow steps that were timed on the card, or are computed.
    """
    from lscl.experiments import cost_model, sweeps
    from lscl.experiments.run import device_of
    from lscl.experiments.traffic import traffic_table

    config = experiment(**values)
    if name:
        runs = sweeps.runs_of(name, values, _seeds_of(name, seeds), _names(methods))
    else:
        runs = sweeps.plan(config.profile, changes=values, seeds=seeds and _seeds(seeds), methods=_names(methods))
    if not runs:
        raise LsclError("nothing to plan for: no run of the set has these methods and this data set")
    if len(datasets := {one.dataset for one in runs}) == 1:
        check_data_dir(*datasets, config.data_dir)
    if card == "all":
        print(cost_model.cards_table([cost_model.cost(one) for one in runs]))
        return
    machine = cost_model.find_card(card) if card else cost_model.measure_machine(device_of(config))
    print(cost_model.plan_table([cost_model.cost(one) for one in runs], machine))
    print(traffic_table(runs))
    cost_model.check_costs(runs, machine)


def _check_names(profile: str, dataset: str | None = None) -> None:
    check_profile(profile)
    if dataset is not None:
        DATASETS.find(dataset)


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if text.strip() and not names:
        raise LsclError(f"methods = {text!r}: give names of systems with commas between them")
    return names


def _seeds_of(name: str, text: str | None) -> list[int]:
    """The seeds of a named set; the tuning has one of its own."""
    if name != "tune":
        return _seeds("42,1999,2024" if text is None else text)
    _refuse("the tuning plays on a seed of its own", seeds=text)
    return []


def _refuse(why: str, **options: Any) -> None:
    """Refuse options that would not be read."""
    for name, value in options.items():
        if value is not None:
            raise LsclError(f"{name} = {value}: {why}, leave it out")


def _seeds(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise LsclError(
            f"seeds = {text!r}: give whole numbers with commas between them, for example 42,1999,2024"
        ) from None
    if twice := [seed for seed in found if found.count(seed) > 1]:
        raise LsclError(f"seeds = {text!r}: {twice[0]} is there more than once, give each seed once")
    return found


@app.command("privacy")
def privacy_command(
    dataset: Annotated[str, typer.Option(help="data set that is attacked")] = "glyphs",
    profile: Annotated[str, typer.Option(help="profile of the runs")] = "mini",
    seeds: Annotated[str, typer.Option(help="seeds with commas")] = "42,1999,2024",
    methods: Annotated[str, typer.Option(help="only these methods, with commas; default: all that send")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with the images, for data sets that are not embedded")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads")] = 1,
    list_only: Annotated[bool, typer.Option("--list", help="only list the runs and which of them are missing")] = False,
) -> None:
    """Attack the uploads of runs in their first task; record the findings, the cost, and the effect of a bad client.

    Finished records are skipped; several of these commands may share the work. Needs the extra `privacy`.
    """
    from lscl.experiments.privacy.measure import attacked_runs, measure_all

    _check_names(profile, dataset)
    check_data_dir(dataset, data_dir)
    measure_all(attacked_runs(dataset, profile, _seeds(seeds), _names(methods), data_dir, threads), list_only)


@app.command("table")
def table_command(
    profile: Annotated[str, typer.Option(help="profile of the records")] = "mini",
    dataset: Annotated[str | None, typer.Option(help="only this data set")] = None,
) -> None:
    """Print the scores of a profile's finished runs, except tuning runs, as means over seeds."""
    from lscl.experiments.records import all_records, select
    from lscl.experiments.sweeps import reportable_records
    from lscl.results import costs_frame, frame
    from lscl.results.markdown import provenance
    from lscl.results.tables import cost_table, score_table

    _check_names(profile, dataset)
    records = [one for one in reportable_records(all_records(profile)) if dataset in (None, one["dataset"])]
    for found, digest in sorted(
        {(one["dataset"], one["data_digest"]) for one in records}
    ):  # one table, one set of images
        chosen = select(records, dataset=found, data_digest=digest)
        table = score_table(frame(chosen)).join(cost_table(costs_frame(chosen))).rename_axis("system")
        print(f"\n{found}, profile {profile}\n{table.to_string()}\n{provenance(chosen)}")
    if not records:
        which = f"profile {profile}" + (f" on {dataset}" if dataset else "")
        raise LsclError(
            f"no records of {which} in {paths.results() / 'runs' / profile}: make some with lscl run or lscl sweep"
        )


@app.command("pages")
def pages_command() -> None:
    """Write the tables, pages and sentences of the book and the README that code makes from the records."""
    from lscl.publish import pages

    print(f"{len(pages.write_pages())} pieces are what code, config and records give")


@app.command("check")
def check_command() -> None:
    """Find generated pieces and notebooks that are older than code, config or records; exit code 2 if there are any."""
    from lscl.publish import freshness, pages

    paths.check_clone("lscl check")
    made, notebooks = pages.stale_pages(), freshness.stale_notebooks()
    for line in [*made, *(["`lscl pages` writes them"] if made else []), *notebooks]:
        print(f"lscl: {line}", file=sys.stderr)
    if made or notebooks:
        raise typer.Exit(2)
    print("every generated page, table, figure and sentence is what code, config and records give")


@app.command("verify")
def verify_command(
    profile: Annotated[str, typer.Option(help="profile of the records")] = "mini",
    sample: Annotated[int | None, typer.Option(min=1, help="how many records, drawn at random; default: 1")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="seed of that draw; default: 0")] = None,
    dataset: Annotated[str | None, typer.Option(help="only this data set")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with the images, for data sets that are not embedded")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="checkpoint of the frozen ViT, for runs that used a local one")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="one cell by its name, set/data set/row/seed, instead of random records")
    ] = None,
    privacy: Annotated[bool, typer.Option("--privacy", help="the records of lscl privacy instead")] = False,
) -> None:
    """Compute recorded runs again from scratch: equal to the bit, equal within rounding, or different (exit code 2).

    On the same kind of CPU, with as many threads and the same torch, nothing but equality to the bit will do.
    """
    from lscl.experiments.privacy.measure import verify_privacy_sample
    from lscl.experiments.verify import check_places_are_read, find_cell, verify, verify_records, verify_sample
    from lscl.publish.verified import cells

    _check_names(profile, dataset)
    if cell is not None:
        _refuse("the name of a cell says which record it is", sample=sample, seed=seed, dataset=dataset)
    sample, seed = sample or 1, seed or 0
    if privacy:
        _refuse("no record of lscl privacy is read for it", cell=cell, weights=weights)
        print(f"wrote {verify_privacy_sample(profile, sample, seed, data_dir, dataset)}")
        return
    describe = lambda record: "; ".join(cells(record)) or "in no table"
    if cell is None:
        print(f"wrote {verify_sample(profile, sample, seed, data_dir, dataset, weights, describe)}")
    else:
        chosen = [find_cell(profile, cell)]
        check_places_are_read(chosen, data_dir, weights)
        verify_records(chosen, lambda record: verify(record, data_dir, weights), describe)


@config_command(data_app, "show", only=PARTITION)
def data_show(values: dict) -> None:
    """Print the partition: training images by client, task and class, with digests and checks."""
    from lscl.data.duplicates import find_duplicates
    from lscl.data.partition import partition
    from lscl.data.sources import load

    config = experiment(**values)
    check_data_dir(config.dataset, config.data_dir)
    data = load(config)
    parts = partition(config, data)
    images = f"{len(data.train)} training and {len(data.test)} test images of {len(data.classes)} classes"
    print(f"{config.dataset}: {images}, digest {data.digest}")
    print(f"partition seed {config.seed}, digest {parts.digest}: no position on two clients, none in train and test")
    print(find_duplicates(data.train, data.test))
    for client, stream in enumerate(parts.tasks):
        for number, task in enumerate(stream):
            counts = {label: 0 for label in task.classes}
            for image in task.train:
                counts[int(data.train.labels[image])] += 1
            dealt = ", ".join(
                f"{make_printable(data.classes[label], 60)}{'*' if label in parts.public else ''} {count}"
                for label, count in counts.items()
            )
            print(f"client {client} task {number}: {len(task.train)} training, {len(task.test)} test images: {dealt}")
    if parts.public:
        print("* public class, shared out over all clients by a Dirichlet draw")


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="folder with train/<class>/... and test/<class>/...")],
    image_size: Annotated[int, typer.Option(min=8, max=1024, help="pixels a side at which images are compared")] = 32,
) -> None:
    """Report on your own images: formats, sizes, modes, class balance, equal images, ignored and unreadable files.

    Exit code 0 if `lscl run --dataset folder` can use them, else 2 and one line that says why not.
    """
    from lscl.data.check import check_folder

    for line in check_folder(folder, image_size):
        print(line)


@app.command("pretrain")
def pretrain_command(
    data_dir: Annotated[Path, typer.Option(help="folder of <class>/<image> files; labels are not used")],
    network: Annotated[
        str, typer.Option(help="mini_vit, the mini foundation model, or small, the CNN of cnn_start = pretrained")
    ] = "mini_vit",
    out: Annotated[
        Path | None,
        typer.Option(help="weight file to write (.safetensors), with a .json file next to it; else named as shipped"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="passes over the images")] = 3,
    batch: Annotated[int, typer.Option(help="images per step")] = 128,
    lr: Annotated[float, typer.Option(help="AdamW learning rate")] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option()] = 2,
) -> None:
    """Make a shipped network: distil EfficientNet-Lite0's features into the ViT or the CNN. Resumes after a stop."""
    from lscl.models.pretrain import pretrain

    pretrain(data_dir, out, epochs, batch, lr, seed, threads, network)


@config_command(app, "probe", only=PROBE)
def probe_command(values: dict, per_class: Annotated[int, typer.Option(help="training images per class")] = 60) -> None:
    """Linear-probe accuracy of the frozen foundation model's feature, over all classes and over sets of 8."""
    from lscl.models.probe import probe

    config = experiment(**values)
    check_data_dir(config.dataset, config.data_dir)
    result = probe(config, per_class)
    for key, value in result.items():
        print(f"{key}: {value}")


@app.command("backbones")
def backbones_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="timm names to try; default: those of the book's table")
    ] = None,
    vit_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="pixels a side of their input; default: their own")
    ] = None,
    store: Annotated[bool, typer.Option(help="for maintainers: write results/backbones.json")] = False,
) -> None:
    """Try which networks can be the frozen ViT, and with which systems; nothing is downloaded.

    A refusal is a result, not an error: the exit code is 0.
    """
    from lscl.experiments.backbones import TRIED, backbone_lines, save_backbones, try_backbone

    if store and (names or vit_size):
        raise LsclError("store: the book's table has its own names and sizes; leave out yours")
    wanted = [(name, vit_size) for name in names] if names else [(name, vit_size or size) for name, size in TRIED]
    tried = []
    for name, size in wanted:
        tried.append(try_backbone(name, size))
        print(*backbone_lines(tried[-1:]), sep="\n", flush=True)
    if store:
        print(f"wrote {save_backbones(tried)}")


@app.command("reproduce")
def reproduce_command(
    profile: Annotated[str, typer.Argument(help="profile: " + ", ".join(PROFILES))] = "demo",
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with the images, for data sets that are not embedded")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="checkpoint of the frozen ViT, instead of the published one")
    ] = None,
    book: Annotated[bool, typer.Option(help="build the book afterwards")] = True,
    force: Annotated[bool, typer.Option(help="execute every notebook again, even if nothing has changed")] = False,
    store: Annotated[
        bool, typer.Option(help="for maintainers: write outputs back to notebooks/ and minutes to results/expected/")
    ] = False,
) -> None:
    """Run every notebook in order through papermill, computing what is missing, then build the book."""
    from lscl.publish import build

    _check_names(profile)
    build.reproduce(profile, data_dir, weights, book, force, store)


@app.command("doctor")
def doctor_command(
    deep: Annotated[bool, typer.Option("--deep", help="also compare the whole cache with its digests")] = False,
) -> None:
    """Print versions, device, disk, weights and saved states: what is there and what is missing.

    The exit code is 2 if something is bad.
    """
    from lscl.experiments.doctor import doctor

    is_bad = False
    for line in doctor(deep):
        is_bad |= line.startswith("bad")
        print(line)
    if is_bad:
        raise typer.Exit(2)


@contextmanager
def one_line():
    """End the process with one line and exit code 2 for errors that a user can mend; a bug keeps its traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (LsclError, OSError, ClickException) as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # whose name has no public place
            error.show()
            sys.exit(2)
        _end(error)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        _end(line)


def _end(error: Exception) -> NoReturn:
    text = _usage(error) if isinstance(error, ClickException) else str(error)
    print(f"lscl: {make_printable(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return error.format_message() + (f" ({context.command_path} --help says what is allowed)" if context else "")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends in one line and exit code 2 (see `one_line`).

    Characters that the output's encoding lacks are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with one_line():
            paths.make_absolute()
            sys.exit(app(args=arguments, prog_name="lscl", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
