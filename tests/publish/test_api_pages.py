"""The API reference has every module, on one page."""

from tests_root import ROOT

from lscl.publish import api_pages


def test_every_module_stands_on_one_page():
    listed = [name for names in api_pages.modules().values() for name in names]
    files = [
        path.relative_to(ROOT).with_suffix("") for path in (ROOT / "lscl").rglob("*.py") if path.name != "__init__.py"
    ]
    wanted = {".".join(path.parts) for path in files} - {"lscl.cli", "lscl.results.file_shapes"}
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in wanted if not name.startswith("lscl.flower.")}
    assert all(api_pages.modules().values())


def test_a_page_names_its_modules():
    text = api_pages.pages()["data"]
    assert "# Data" in text and ".. automodule:: lscl.data.partition\n   :members:" in text
