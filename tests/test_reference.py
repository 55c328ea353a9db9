"""What the book says of the code, made from the code."""

from lscl import reference
from lscl.config import experiment
from lscl.methods import METHODS


def test_every_system_has_its_description_with_source_and_payload():
    text = reference.systems()
    for method, kind in METHODS.items():
        part = text.split(f"`--method {method}`")[1].split("\n## ")[0]
        assert "payload" in part.lower() or "returned: nothing" in part, method
        assert "arXiv" in part or "Not in the paper" in part or method == "fed_lscl", method
        assert kind.__name__ in part


def test_config_table_has_every_field_and_profile():
    table = reference.config_table()
    assert len(table) == len(type(experiment()).model_fields)
    assert table.loc["`clients`", "paper"] == "5"
    assert table.loc["`profile`", "mini"] == "mini"
    assert table.loc["`images_per_class`", "paper"] == "none"
