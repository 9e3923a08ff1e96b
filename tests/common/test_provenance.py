import tomllib

import dera_jax
from dera_jax.common.provenance import provenance
from tests.support.processes import ROOT


def test_the_version_is_that_of_the_code_installed_or_not():
    versions = provenance([])["versions"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions["dera_jax"] == dera_jax.__version__ == project["version"]
