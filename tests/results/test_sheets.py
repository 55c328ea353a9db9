"""Which images of servers are shown."""

from made_records import record

from lscl.experiments.records import accuracy
from lscl.federation.metrics import average_so_far
from lscl.results import sheets


def test_first_and_last_sheet_of_the_first_record_that_has_some(places):
    first, second = (record("target", seed=seed) for seed in (42, 1999))
    assert sheets.server_images([first, second]) == {}
    for task in range(1, 5):
        path = places / "results" / "runs" / "mini" / "sheets" / f"{second['name']}--task{task}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = sheets.server_images([record(), first, second])
    own, seen = (average_so_far(accuracy(second, mask)) for mask in ("task", "seen"))
    assert {title: path.name[-9:] for title, path in found.items()} == {
        f"TARGET, after task {t}\nits model: {own[t - 1]:.1f} % (all seen: {seen[t - 1]:.1f} %)": f"task{t}.png"
        for t in (1, 4)
    }
    assert sheets.records_with_sheets([record(), first, second]) == [second]
