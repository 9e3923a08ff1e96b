"""A model's parameters from its files, straight into arrays where they will live, and back.

What is read at a time is a few megabytes for each thread: beyond the arrays themselves, the host's memory
holds the pages of one file, and of weights that are quantized a few parameters that wait for it.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.models.linear import WeightsConfig, quantize_kernel
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import extras, names, tensors
from dera_jax.policies.ahead import ahead
from dera_jax.policies.families import FAMILIES

CHUNK = 2**24
"""Bytes of a file's tensor that are read at a time."""
PANEL = 8
"""Rows that are transposed at a time: what is read of each stays in the processor's cache until all of it is used."""
Found = dict[str, tuple[tensors.Tensor, names.Source]]
"""Our parameter paths to where they are."""
Place = Callable[[str, tuple[int, ...]], Sharding]
"""A parameter's path and shape to the devices that hold it."""
Seen = Callable[[int], object]
"""Told the number of bytes that were just read."""


def find_params(folder: Path, model_type: str, config: models.ModelConfig) -> Found:
    """Returns where each parameter of a full-precision model is, its kind and shape checked.

    Raises:
      ValueError: a tensor is missing, or of the wrong shape or kind; with its name.
    """
    return find(folder, FAMILIES[model_type].names, full_shapes(config), config.num_heads)


def full_shapes(config: WeightsConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of the model in full precision, without adapters and steering."""
    shapes = flatten(models.param_shapes(replace(config, quantization=None, adapters=(), steered=())))
    return {path: shape.shape for path, shape in shapes.items()}


def find(folder: Path, name_map: names.NameMap, shapes: dict[str, tuple[int, ...]], num_heads: int) -> Found:
    """Returns where in `folder` the parameters of these paths and shapes are.

    Raises:
      ValueError: a tensor is missing, or of the wrong shape or kind; with its name.
    """
    listed, found = tensors.list_tensors(folder), {}
    extras.check_scales(folder, listed)
    for path, source in names.sources(name_map, shapes, num_heads).items():
        name = names.find(source.name, name_map, listed)
        if name is None and path == "embed.embedding" and "head.kernel" not in shapes:
            # Of two that are one, a file may keep either.
            name = names.find(str(name_map.names["head.kernel"]), name_map, listed)
        if name is None:
            raise ValueError(
                f"{shown(folder, 200)}: tensor {source.name} is missing from the safetensors files "
                f"(expected shape {source.shape(shapes[path])}){_wrapped(source.name, listed)}"
            )
        tensor, expected = listed[name], source.shape(shapes[path])
        if tensor.shape != expected:
            where = shown(tensor.file, 200)
            raise ValueError(f"{where}: tensor {name}: expected shape {expected}, found {tensor.shape}")
        check_kind(tensor)
        found[path] = tensor, source
    extras.check_rest(folder, name_map, listed, {tensor.name for tensor, _ in found.values()})
    return found


def check_kind(tensor: tensors.Tensor) -> None:
    """Raises ValueError unless a tensor's values are of a kind that models compute with."""
    if tensor.dtype not in tensors.DTYPES:
        known, where = ", ".join(tensors.DTYPES), shown(tensor.file, 200)
        raise ValueError(
            f"{where}: tensor {shown(tensor.name, 200)}: expected one of {known}, found {tensor.dtype}"
        )


def _wrapped(name: str, listed: Collection[str]) -> str:
    """Returns what to do where a tensor has more before its name, as those of a model in a wrapper have."""
    found = next((other for other in listed if other.endswith(f".{name}")), None)
    if found is None:
        return ""
    return (
        f"; found {shown(found, 200)}: the model was saved inside a wrapper (torch.compile writes _orig_mod., "
        "DataParallel module.); save the model within"
    )


def count_bytes(config: models.ModelConfig, dtype: str) -> int:
    """Returns the size of a model's parameters in full precision."""
    return sum(math.prod(shape) for shape in full_shapes(config).values()) * jnp.dtype(dtype).itemsize


def common_dtype(found: Found, otherwise: str | None) -> str:
    """Returns the type of all tensors; where they differ, `otherwise`, or float32."""
    dtypes = {tensors.DTYPES[tensor.dtype] for tensor, _ in found.values()}
    if len(dtypes) == 1:
        return dtypes.pop()
    return otherwise if otherwise in tensors.DTYPES.values() else "float32"


def computed_dtype(stored: str) -> str:
    """Returns the type to compute in, where none is asked for, with tensors of type `stored`.

    On a processor float32: products of 16-bit types widen every weight at every use, those of processors
    that have instructions for them too, which XLA does not use.
    """
    return "float32" if jax.default_backend() == "cpu" else stored


def read_params(
    found: Found,
    dtype: str,
    place: Place | None = None,
    quantization: str | None = None,
    seen: Seen = lambda _: None,
) -> dict:
    """Returns the parameters as nested arrays of `dtype`, the linear maps within layers quantized.

    Raises:
      ValueError: values that are not finite; with the tensor's name.
    """
    quantize = jax.jit(quantize_kernel, static_argnames="kind")
    read = _Reader(dtype, seen)
    # File by file, so that the pages of one at a time are in memory.
    items = sorted(found.items(), key=lambda item: (item[1][0].file, item[1][0].name))

    def whole(item) -> np.ndarray | None:
        tensor, source = item[1]
        return None if place else read(tensor, source, (slice(None),) * len(source.ours(tensor.shape)))

    params = {}
    for (path, (tensor, source)), values in zip(items, ahead(whole, items), strict=True):
        shape = source.ours(tensor.shape)
        if place:
            value = jax.make_array_from_callback(
                shape, place(path, shape), lambda index, t=tensor, s=source: read(t, s, index)
            )
        else:
            value = jax.device_put(values)
        if quantization and is_quantized(path):
            parts = quantize(value, quantization)
            parts = {path.removesuffix("kernel") + name: part for name, part in parts.items()}
            params |= {
                name: jax.device_put(part, place(name, part.shape)) if place else part
                for name, part in parts.items()
            }
        else:
            params[path] = value
    return unflatten(params)


def is_quantized(path: str) -> bool:
    """Returns whether quantization changes a parameter: kernels within layers, not the head."""
    return path.endswith(".kernel") and any(part.isdigit() for part in path.split("."))


def named_tensors(params: dict, family: str | names.NameMap, num_heads: int) -> dict[str, np.ndarray]:
    """Returns full-precision parameters under the names and in the shape of Hugging Face files."""
    name_map = FAMILIES[family].names if isinstance(family, str) else family
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    return names.join(flat, names.sources(name_map, flat, num_heads))


class _Reader:
    """Reads values of tensors as our parameters have them; several threads may."""

    def __init__(self, dtype: str, seen: Seen):
        self._dtype, self._seen, self._lock = dtype, seen, threading.Lock()
        # The next parameter may be another part of it.
        self._whole = lru_cache(maxsize=1)(tensors.Tensor.read)

    def __call__(self, tensor: tensors.Tensor, source: names.Source, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the values of our parameter at `index`, in memory that the CPU device takes over as it is."""
        if source.part:
            with self._lock:
                whole = self._whole(tensor)
            values = np.ascontiguousarray(_converted(source.take(whole)[index], self._dtype, tensor))
            self._tell(values.nbytes)
            return values
        spans = [
            range(*one.indices(size)) for one, size in zip(index, source.ours(tensor.shape), strict=True)
        ]
        out = _empty([len(span) for span in spans], self._dtype)
        # Both in the file's order from here on.
        into, spans = (out.T, spans[::-1]) if source.transposed else (out, spans)
        rest = tuple(slice(span.start, span.stop) for span in spans[1:])
        for rows in _chunks(spans[0], math.prod(map(len, spans[1:])) * 4):
            part = into[rows.start - spans[0].start : rows.stop - spans[0].start]
            # As it lies in the file: each of the three is several times slower on strided memory.
            values = _converted(tensor.read((slice(rows.start, rows.stop), *rest)), self._dtype, tensor)
            _copy(part, values, source.transposed)
            self._tell(part.nbytes)
        return out

    def _tell(self, count: int) -> None:
        with self._lock:
            self._seen(count)


def _converted(values: np.ndarray, dtype: str, tensor: tensors.Tensor) -> np.ndarray:
    """Returns values of a tensor as `dtype`, all of them finite."""
    if values.dtype == "bfloat16" and dtype == "float32":  # by their bits: NumPy takes one after the other
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
        wide <<= 16
        converted = wide.view(np.float32)
    else:
        with np.errstate(over="ignore"):
            converted = values.astype(dtype, copy=False)
    # What has become wider is finite if it was.
    check_finite(min(converted, values, key=lambda array: array.itemsize), tensor, dtype)
    return converted


def _copy(out: np.ndarray, values: np.ndarray, transposed: bool) -> None:
    """Writes `values` to `out`, a few rows at a time where the two lie in memory the other way round."""
    step = PANEL if transposed else max(1, len(values))
    for row in range(0, len(values), step):
        out[row : row + step] = values[row : row + step]


def _chunks(rows: range, row_bytes: int) -> Iterator[range]:
    step = max(1, CHUNK // max(row_bytes, 1))
    for start in range(rows.start, rows.stop, step):
        yield range(start, min(start + step, rows.stop))


def check_finite(values: np.ndarray, tensor: tensors.Tensor, dtype: str) -> None:
    """Raises ValueError where a tensor holds NaN or infinite values."""
    # By their bits, whose exponent is then all ones: NumPy asks bfloat16 for one value after the other.
    kind = f"uint{8 * values.itemsize}"
    exponent = np.array(np.inf, values.dtype).view(kind)
    if np.max(values.view(kind) & exponent, initial=0) == exponent:
        where, name = shown(tensor.file, 200), shown(tensor.name, 200)
        raise ValueError(f"{where}: tensor {name} holds NaN or infinite values as {dtype}")


def _empty(shape: list[int], dtype: str) -> np.ndarray:
    """Returns an empty array whose memory begins where JAX takes it over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
