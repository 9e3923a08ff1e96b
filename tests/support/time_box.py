"""`--until=TIME`: tests that would begin after a time are left out, and counted, so that a slow machine still ends.

Which ones are left out then changes from run to run: their order is another one for every time.
"""

import random
import time

import pytest

OUT_OF_TIME = "out of time"


def pytest_addoption(parser):
    parser.addoption(
        "--until",
        type=int,
        metavar="SECONDS",
        help="leave out the tests that would begin after this time, in seconds since 1970, and say how many",
    )


def pytest_collection_modifyitems(items, config):
    until = config.getoption("--until")
    if until is not None:
        # File by file, for the fixtures that the tests of one share; alike in all of xdist's workers.
        files = sorted({str(item.path) for item in items})
        random.Random(until).shuffle(files)
        place = {file: number for number, file in enumerate(files)}
        items.sort(key=lambda item: place[str(item.path)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip(OUT_OF_TIME)


def is_left_out(report) -> bool:
    """Whether a test was skipped for want of time."""
    return OUT_OF_TIME in str(report.longrepr)


def pytest_terminal_summary(terminalreporter):
    if left := [each for each in terminalreporter.stats.get("skipped", []) if is_left_out(each)]:
        terminalreporter.write_line(f"NOT RUN, out of time: {len(left)} tests")
        files = sorted({each.nodeid.partition("::")[0] for each in left})
        terminalreporter.write_line(f"they are in {' '.join(files)}")
