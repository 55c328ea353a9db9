"""What each file of results must have: every shape fits the committed files, and says where another one does not."""

import json

import pytest
from pydantic import TypeAdapter
from tests_root import ROOT, measured

from lscl import files
from lscl.errors import LsclError
from lscl.results import file_shapes

SHAPES = [
    ("expected/*.json", file_shapes.ExpectedProfile),
    ("verified/*.json", file_shapes.VerifiedProfile),
    ("components/*.json", file_shapes.Components),
    ("benchmarks/*.json", file_shapes.Benchmark),
]


@pytest.mark.parametrize(("pattern", "shape"), SHAPES)
def test_committed_files_have_their_shape_and_need_each_of_its_entries(pattern, shape, tmp_path, one_line):
    paths = sorted((ROOT / "results").glob(pattern))
    paths = paths or [measured(f"results/{pattern.replace('*', 'mini--cifar100')}")]
    for path in paths:
        whole = files.read_json(path, shape)
        needed = [name for name, field in shape.model_fields.items() if field.is_required()]
        assert needed
        for name in needed:
            (tmp_path / "file.json").write_text(
                json.dumps({key: value for key, value in whole.items() if key != name}), encoding="utf-8"
            )
            with pytest.raises(LsclError) as caught:
                files.read_json(tmp_path / "file.json", shape)
            one_line(caught, name)


def test_a_row_of_another_kind_is_named_by_its_place():
    row = {"cpu": "some cpu", "cores": 2}
    shape = TypeAdapter(file_shapes.Rows[file_shapes.Cores])
    assert [one.cores for one in shape.validate_python({"rows": [row, row]}).rows] == [2, 2]
    with pytest.raises(ValueError, match=r"rows\.1\.cores"):
        shape.validate_python({"rows": [row, {**row, "cores": "2"}]})
