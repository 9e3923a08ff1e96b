"""Rotary position embedding: which frequencies the head dimensions turn at, and the turning."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dera_jax.common.checks import check_choice, check_number

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """One kind of rotary positions, with what made a context longer than it was trained."""

    theta: float = 10_000.0
    """Base of the geometric series of wavelengths."""
    kind: str = "default"
    """default, linear (arXiv:2306.15595), llama3 (arXiv:2407.21783) or yarn (arXiv:2309.00071)."""
    factor: float = 1.0
    """How many times longer the context was made."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """llama3: wavelengths between original_max_positions / high and / low are blended."""
    original_max_positions: int = 0
    """llama3, yarn: context length, in tokens, before it was made longer; linear: the same, 0 where not told."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """yarn: dimensions that turn between slow and fast times in the original context are blended."""
    truncate: bool = True
    """yarn: whether the ends of that range are whole dimensions."""
    attention_factor: float = 1.0
    """yarn: of the turned queries and keys."""
    fraction: float = 1.0
    """Share of the head dimensions, the first, that turn at all."""

    def __post_init__(self):
        check_choice("rope kind", self.kind, KINDS)
        check_number("rope_theta", self.theta, 1.0, math.inf)
        check_number("rope factor", self.factor, 1.0, math.inf)
        check_number("rope fraction", self.fraction, 0.0, 1.0)
        if self.kind in ("llama3", "yarn"):
            check_number("rope original_max_positions", self.original_max_positions, 1, math.inf)
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope high_freq_factor: expected more than low_freq_factor ({self.low_freq_factor}), "
                f"got {self.high_freq_factor}"
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns the angle in radians that each pair of turning dimensions turns per position."""
        dim = int(head_dim * self.fraction)
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        # The power in float64: NumPy's in float32 is an ulp off, which 100 000 positions make 0.01 radians.
        powers = (self.theta ** exponents.astype(np.float64)).astype(np.float32)
        frequencies = np.float32(1.0) / powers
        # Long wavelengths are stretched by `factor`, short ones kept (llama3, yarn), between them blended.
        kept = {"default": 1.0, "linear": 0.0, "llama3": self._llama3, "yarn": self._yarn}[self.kind]
        kept = kept(frequencies, dim) if callable(kept) else kept
        return ((1 - kept) * frequencies / self.factor + kept * frequencies).astype(np.float32)

    def _llama3(self, frequencies: np.ndarray, dim: int) -> np.ndarray:
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return np.clip(blend, 0.0, 1.0)

    def _yarn(self, frequencies: np.ndarray, dim: int) -> np.ndarray:
        def dimension(turns: float) -> float:
            """Returns the pair that turns so often in the original context."""
            wavelength = self.original_max_positions / (turns * 2 * math.pi)
            return dim * math.log(wavelength) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        steps = np.arange(dim // 2, dtype=np.float32)
        return 1 - np.clip((steps - low) / max(high - low, 0.001), 0.0, 1.0).astype(np.float32)


def rotate(
    x: Float[Array, "rows heads length head_dim"],
    angles: Float[Array, "rows length half"],
    factor: float = 1.0,
) -> Float[Array, "rows heads length head_dim"]:
    """Returns `x` with dimension pairs (i, i + half) turned by `angles`, times `factor`.

    Dimensions beyond 2·half stay as they are.
    """
    half = angles.shape[-1]
    cos, sin = factor * jnp.cos(angles)[:, None], factor * jnp.sin(angles)[:, None]
    exact = x.astype(jnp.float32)
    first, second, rest = exact[..., :half], exact[..., half : 2 * half], exact[..., 2 * half :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return turned.astype(x.dtype)
