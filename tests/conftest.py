"""Fixtures shared by all tests; shapes in signatures are checked while tests run."""

import gc
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from jaxtyping import install_import_hook

import tests.support.typecheck  # noqa: F401  (the hook looks it up by name)
from dera_jax.common.folders import data_folder
from tests.support.processes import QUICKLY, ROOT

# Torch with several threads on models this small waits for them most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ctrl-C is ignored by what a script runs in the background, and by all that it starts; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# libtpu, which tests of `eval.plan` compile with, then looks for no TPU and says nothing.
for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
):
    os.environ.setdefault(name, value)
# What is compiled is kept for the other tests of this run (or of several, with DERA_JAX_TEST_CACHE set), and nowhere
# else. Small programs too: `forget_compiled` lets go of them, and hundreds of modules and processes have the same.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Where it is by default, before that is another place.
    os.environ.setdefault("DERA_JAX_TEST_DATA", str(data_folder().absolute()))
    made = tempfile.TemporaryDirectory(prefix="dera_jax-tests-")
    os.environ["XDG_CACHE_HOME"] = made.name
    programs = os.environ.get("DERA_JAX_TEST_CACHE", os.path.join(made.name, "programs"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Before the first import of dera_jax: functions of the files that speak of shapes check them. The others, which are
# called for every completion, would take six times as long.
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "dera_jax").rglob("*.py"))
    if "jaxtyping" in path.read_text(encoding="utf-8")
]
install_import_hook(SHAPED, "tests.support.typecheck.check")

import jax  # noqa: E402
import pytest  # noqa: E402

from dera_jax.commands.process import streams  # noqa: E402
from dera_jax.common.notes import Note  # noqa: E402

# Nothing that is imported goes away: looking it through for garbage, over and over, takes a tenth of the time.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

pytest_plugins = [
    "tests.support.time_box", "tests.support.command_runs", "tests.support.browsers", "tests.support.outside_data",
    "tests.support.stub_judge",
]  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--compile",
        choices=("quick", "full"),
        default="quick",
        help="let XLA compile quickly (compiling is most of what tests do), or as it does for users",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", 'slow: left out by `pytest` alone; `-m "slow or not slow"` runs all')
    config.addinivalue_line("markers", "bits: says what is equal to the bit; run with --compile=full, too")
    config.addinivalue_line("filterwarnings", "ignore::dera_jax.common.notes.Note")
    if config.getoption("compile") == "quick":
        os.environ.setdefault("XLA_FLAGS", QUICKLY)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """Names what failed as soon as it has, in runs that may be stopped before their end."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid}", flush=True)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Lets go of a module's compiled programs, which are gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def toy() -> Path:
    """The folder of a trained model of 319 000 parameters, the reference of the shipped pair."""
    from dera_jax.policies.policy import TOY

    return TOY / "reference"


@pytest.fixture
def terminal(capsys, monkeypatch):
    """`capsys`, with what the library warns of as commands show it, every time."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    streams.tame_libraries()

    def show(message, category, *place):
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)

    monkeypatch.setattr(warnings, "showwarning", show)
    warnings.simplefilter("always", Note)
    return capsys


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> Path:
    """A data folder with what looks like the data of the data folder, invented."""
    from scripts.reproduce.stand_ins import write_stand_ins

    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    return folder


@pytest.fixture(scope="session")
def pair(toy):
    """A reference and a policy that differs from it: the same weights, disturbed."""
    from dera_jax import load_policy
    from dera_jax.policies.policy import with_params

    reference = load_policy(str(toy))
    keys = iter(jax.random.split(jax.random.key(7), 100))

    def disturb(array):
        return array * (1 + 0.1 * jax.random.normal(next(keys), array.shape, array.dtype))

    return reference, with_params(reference, jax.tree.map(disturb, reference.params))
