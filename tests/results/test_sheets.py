"""Which images of servers are shown."""

from made_records import record

from lscl.experiments.records import accuracy
from lscl.federation.metrics import average_so_far
from lscl.results import sheets


def test_the_last_sheet_of_the_first_record_that_has_some(places):
    first, second = (record("target", seed=seed, tasks=12) for seed in (42, 1999))
    assert sheets.server_images([first, second]) == {}
    for task in range(1, 11):
        path = places / "results" / "runs" / "mini" / "sheets" / f"{second['name']}--task{task}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    ((title, path),) = sheets.server_images([record(), first, second]).items()
    own, seen = (average_so_far(accuracy(second, mask))[9] for mask in ("task", "seen"))
    assert title == f"TARGET, after task 10\nits model: {own:.1f} % (all seen: {seen:.1f} %)"
    assert path.name.endswith("--task10.png")
    assert sheets.records_with_sheets([record(), first, second]) == [second]
