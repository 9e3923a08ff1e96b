"""Tests in a browser: marked `browser`, skipped where there is no Chromium, and told once.

Where there is one, the package playwright must be there, too; it drives the system's Chromium, and downloads none.
"""

import shutil

import pytest

LACKING = "needs a browser that is not there: chromium"


@pytest.fixture(scope="module")
def browser():
    """Chromium; for one module, since other tests of a process cannot use asyncio beside it."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: looks at a page with the `chromium` on the PATH")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if not shutil.which("chromium"):
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason=LACKING))


def is_without_browser(report) -> bool:
    """Whether a test was skipped for want of a browser."""
    return LACKING in str(report.longrepr)


def pytest_terminal_summary(terminalreporter):
    if lacking := [each for each in terminalreporter.stats.get("skipped", []) if is_without_browser(each)]:
        terminalreporter.write_line(f"{len(lacking)} tests need a browser: apt-get install chromium")
