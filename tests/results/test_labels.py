"""Names of systems and of the rows of tables."""

import pandas as pd
from made_records import record

from lscl.federation.metrics import MASKS
from lscl.registry import DATASETS, METHODS
from lscl.results import labels


def test_every_system_score_and_data_set_has_a_name():
    assert set(labels.methods_in_order()) == set(METHODS) and labels.label_of("fedavg_vit") == "FedAvg + ViT"
    assert list(labels.MASK_LABELS) == list(MASKS) and set(labels.DATASET_LABELS) == set(DATASETS)
    assert labels.label_of("somebody_elses") == "somebody_elses"


def test_a_row_says_what_differs_from_the_profile():
    assert labels.row_label(record("l2p")) == "FedAvg + L2P"
    assert labels.row_label(record("l2p", values={"lr": 0.5, "epochs": 3})) == "FedAvg + L2P (epochs = 3, lr = 0.5)"
    random = {"ridge_features": 2000, "ridge_lambda": 0.3}  # a row of the main table has a note of its own
    assert labels.row_label(record("fed_ridge", values=random)) == "federated ridge (2,000 random features)"
    assert labels.row_label(record("fed_ridge", values={**random, "ridge_lambda": 0.5})).endswith("ridge_lambda = 0.5)")
    assert labels.row_label(record(values={"o2d": "sgd", "alpha": 0.0})) == "Fed-LSCL (O2D gradient, alpha = 0.0)"


def test_controls_are_known_by_their_labels():
    assert labels.training_free() == [name for name, kind in METHODS.items() if not kind.trains]
    for name in labels.training_free():
        assert labels.is_training_free(labels.row_label(record(name)))
    assert labels.is_training_free(labels.row_label(record("fed_ridge", values={"ridge_features": 2000})))
    trained = [labels.label_of(name) for name, kind in METHODS.items() if kind.trains]
    assert not any(map(labels.is_training_free, [*trained, "", "federated ridges"]))


HEAD, RIDGE = labels.label_of("local_head"), labels.label_of("local_ridge")
ROWS = ["Fed-LSCL (O2D exact)", "Fed-LSCL (O2D gradient)", "LoRM", HEAD, RIDGE, "PILoRA"]


def test_figures_show_the_papers_system_the_controls_and_the_best_in_colour():
    assert labels.highlighted(ROWS) == ["Fed-LSCL (O2D exact)", HEAD, RIDGE]
    assert labels.highlighted(ROWS, "LoRM")[-1] == "LoRM" and labels.highlighted(ROWS, "nobody") == labels.highlighted(
        ROWS
    )


def test_systems_belong_to_the_paper_the_controls_our_variants_or_somebody_else(toys):
    groups = {name: labels.group_of(name) for name in METHODS}
    paper = [name for name, group in groups.items() if group == "paper"]
    assert len(paper) == 12 and set(paper) == set(labels.paper_names().values())
    assert groups["fed_ridge"] == groups["local_head"] == "control" and groups["toy"] == "added"
    assert [name for name, group in groups.items() if group == "variant"] == labels.variants_of_ours()
    assert labels.group_of("somebody_elses") == "added" and set(groups.values()) == set(labels.GROUPS)


def test_our_variants_are_in_colour_and_never_the_best_of_the_others():
    (variant,) = map(labels.label_of, labels.variants_of_ours())
    assert labels.is_variant(variant) and labels.is_variant(f"{variant} (rank = 8)")
    assert not any(map(labels.is_variant, [*ROWS, f"{variant}s"]))
    assert labels.highlighted([variant, *ROWS], "LoRM")[-2:] == [variant, "LoRM"]
    assert labels.best_trained(pd.Series([99.0, 50.0], index=[variant, "LoRM"])) == "LoRM"


def test_the_best_is_neither_the_papers_system_nor_a_control():
    scores = pd.Series([99.0, 98, 50, 97, 96, 60], index=ROWS)
    assert labels.best_trained(scores) == "PILoRA" and labels.best_trained(scores.iloc[:2]) is None
