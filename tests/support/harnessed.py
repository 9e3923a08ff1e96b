"""lm-evaluation-harness without a network, and its own model of a folder."""

from functools import partial

import datasets
import pytest
from lm_eval import evaluator, tasks
from lm_eval.models.huggingface import HFLM

from dera_jax.policies.policy import TOY

REFERENCE, ALIGNED = TOY / "reference", TOY / "aligned"
LAMBDAS = [(0.0,), (0.5,), (1.0,), (1.7,)]
LENGTH = 64
"""Tokens that models read here, so that truncating is cheap to test."""
ROWS = 16


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No test asks the network, and none writes outside its own folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        # Without its own ten thousand tasks, and without a look at the machine for each result.
        patch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        yield


def hf(folder, **options):
    options = {"device": "cpu", "dtype": "float32", "batch_size": 4, "max_length": LENGTH} | options
    return HFLM(str(folder), **options)
