"""Files of a model to be broken, and the line that a call is refused with."""

import json

import numpy as np
import pytest
from safetensors.flax import load_file, save_file

from dera_jax.models.trees import flatten

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.2.input_layernorm.weight"


def refusal(function, *args) -> str:
    """Returns the one line that a call is refused with."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_tensors(folder, **tensors):
    """Puts other tensors in place of those of these names (their dots as __); None takes one out."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    kept = {name: value for name, value in (load_file(folder / WEIGHTS) | named).items() if value is not None}
    save_file(kept, folder / WEIGHTS)


def shard(folder, parts=3):
    """Replaces the one file by several and an index."""
    tensors, files = load_file(folder / WEIGHTS), {}
    for number in range(parts):
        file = f"model-{number + 1:05}-of-{parts:05}.safetensors"
        names = sorted(tensors)[number::parts]
        save_file({name: tensors[name] for name in names}, folder / file)
        files |= dict.fromkeys(names, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def assert_same_params(one, other):
    one, other = flatten(one.params), flatten(other.params)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], strict=True)
