"""Tests are left out once their time is over, and counted as such, not as others that were skipped."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from tests.support import outside_data, time_box


def config(until):
    return SimpleNamespace(getoption=lambda name: until)


# A moment of the far future, not one counted from now: a test's name may not depend on when it is collected.
@pytest.mark.parametrize(("until", "runs"), [(None, True), (10**11, True), (1, False)])
def test_what_begins_in_time_runs(until, runs):
    item = SimpleNamespace(config=config(until))
    if runs:
        time_box.pytest_runtest_setup(item)
        return
    with pytest.raises(pytest.skip.Exception, match=time_box.OUT_OF_TIME):
        time_box.pytest_runtest_setup(item)


def test_files_stay_together_in_an_order_of_each_time():
    def order(until):
        items = [SimpleNamespace(path=f"{n % 7}.py", number=n) for n in range(40)]
        time_box.pytest_collection_modifyitems(items, config(until))
        return [(item.path, item.number) for item in items]

    one = order(1)
    assert one == order(1) and len({tuple(order(n)) for n in range(9)}) > 5
    assert sum(here[0] != there[0] for here, there in pairwise(one)) == 6
    assert [number for _, number in order(None)] == list(range(40))


def test_they_are_not_counted_among_others_that_were_skipped():
    skipped = [SimpleNamespace(longrepr=("file", 1, why)) for why in (time_box.OUT_OF_TIME, "no such thing")]
    need, others = outside_data._skipped(SimpleNamespace(stats={"skipped": skipped}))
    assert not need and others == skipped[1:]
