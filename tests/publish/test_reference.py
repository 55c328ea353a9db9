"""What the book says of the code, made from the code."""

import json

from lscl.config import PROFILES, experiment
from lscl.models.cnn_weights import SMALL_WEIGHTS
from lscl.models.vit import WEIGHTS
from lscl.publish import reference


def test_config_table_has_every_field_and_profile():
    table = reference.config_table()
    assert len(table) == len(type(experiment()).model_fields)
    assert table.loc["`clients`", "paper"] == "5"
    assert table.loc["`profile`", "mini"] == "mini"
    assert table.loc["`images_per_class`", "paper"] == "none"


def test_the_model_card_has_the_facts_of_both_shipped_networks():
    text = reference.model_card()
    for weights, label in ((WEIGHTS, "tab-model-facts"), (SMALL_WEIGHTS, "tab-small-cnn-facts")):
        about = json.loads(weights.with_suffix(".json").read_text("utf-8"))
        assert f":name: {label}\n" in text and f"| sha256 | {about['sha256']} |" in text
        assert f"| loss | {about['loss']} |" in text


def test_values_for_one_data_set_stand_in_a_row_for_all_profiles_that_share_them():
    table = reference.method_values()
    rows = {tuple(row) for row in table[["method", "profile", "why", "values"]].itertuples(index=False)}
    every = ", ".join(profile for profile in PROFILES if profile != "smoke")
    assert ("FedAvg", every, "cifar100", "augment = crop_flip") in rows
    assert ("FedAvg", every, "glyphs", "augment = crop") in rows
    length = "dual_task_length = 20, lr = 0.0003125, epochs = 10"
    assert ("FedAvg + DualPrompt", "paper", "imagenet_r", length) in rows
