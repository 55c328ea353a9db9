"""What the book says of the code, made from the code."""

from lscl.config import experiment
from lscl.publish import reference


def test_config_table_has_every_field_and_profile():
    table = reference.config_table()
    assert len(table) == len(type(experiment()).model_fields)
    assert table.loc["`clients`", "paper"] == "5"
    assert table.loc["`profile`", "mini"] == "mini"
    assert table.loc["`images_per_class`", "paper"] == "none"
