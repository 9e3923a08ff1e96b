import tomllib
from pathlib import Path

import dera_jax
from dera_jax.common.provenance import provenance


def test_the_version_is_that_of_the_code_installed_or_not():
    versions = provenance([])["versions"]
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert versions["dera_jax"] == dera_jax.__version__ == project["version"]
