"""Tests of data that the project does not carry: marked `data`, skipped where it is not there, and told once.

`@pytest.mark.data("e2e", "vader")` names what a test reads in the data folder; the fixture `data` is that folder,
for marked tests only. All others could not find it: whatever asks for it in the usual way is sent where there
can be none.
"""

import os

import pytest

from dera_jax.common.folders import data_folder, how_to_get
from scripts.get_data import is_there
from tests.support.browsers import is_without_browser
from tests.support.time_box import is_left_out

# Before xdist's workers start, which inherit it.
os.environ.setdefault("DERA_JAX_TEST_DATA", str(data_folder().absolute()))
os.environ["DERA_DATA"] = os.path.join(os.devnull, "for-tests-marked-data-only")

LACKING = "needs data that is not there"


@pytest.fixture(scope="session")
def data():
    """The data folder."""
    from pathlib import Path

    return Path(os.environ["DERA_JAX_TEST_DATA"])


def pytest_addoption(parser):
    parser.addoption(
        "--may-skip",
        choices=("any", "data", "none"),
        default="any",
        help="fail if other tests are skipped than those that need data or a browser, or any at all",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "data(*names): reads what scripts/get_data.py gets under these names")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    found = {}
    for item in items:
        marks = list(item.iter_markers("data"))
        if bool(marks) != ("data" in item.fixturenames):
            raise pytest.UsageError(f"{item.nodeid}: the mark `data` and the fixture `data` go together")
        names = [name for mark in marks for name in mark.args]
        if marks and not names:
            raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.data names no data")
        for name in names:
            if name not in found:
                found[name] = is_there(name, os.environ["DERA_JAX_TEST_DATA"])
        if lacking := [name for name in names if not found[name]]:
            item.add_marker(pytest.mark.skip(reason=f"{LACKING}: {' '.join(lacking)}"))


def _skipped(reporter):
    """Returns the reports of tests skipped for want of data, and of the others."""
    reports = [each for each in reporter.stats.get("skipped", []) if not is_left_out(each)]
    need = [report for report in reports if LACKING in str(report.longrepr)]
    return need, [report for report in reports if report not in need]


def pytest_terminal_summary(terminalreporter, config):
    need, others = _skipped(terminalreporter)
    if need:
        names = {name for report in need for name in _reason(report).split(": ")[-1].split()}
        terminalreporter.write_line(f"{len(need)} tests need data: {how_to_get(sorted(names))}")
    if config.getoption("--may-skip") != "any":
        terminalreporter.write_line(f"skipped: {len(need)} that need data, {len(others)} others")
        for report in [*_forbidden(need, others, config)]:
            terminalreporter.write_line(f"must not be skipped: {report.nodeid}: {_reason(report)}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not session.exitstatus and _forbidden(*_skipped(reporter), session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _forbidden(need, others, config):
    faults = [report for report in others if not is_without_browser(report)]
    return {"any": [], "data": faults, "none": [*need, *others]}[config.getoption("--may-skip")]


def _reason(report):
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
