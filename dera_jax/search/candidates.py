"""A candidate of a search, whole or cut where its roll-out is."""

from dataclasses import dataclass

import numpy as np

from dera_jax.decoding.device_loop import Drawn
from dera_jax.decoding.request import Completion


@dataclass
class Candidate:
    """What a decision may choose."""

    completion: Completion
    """All that it says from the prompt on; one that has not ended is cut where its roll-out is."""
    ended: bool = True
    """Whether nothing follows what is kept of it."""
    start: int = 0
    """Tokens that were kept before its decision."""
    parent: int | None = None
    """The number, in the decision before, of the candidate that it goes on from, or is; None: the prompt."""
    row: int | None = None
    """Of the batch, that rolled it out; None: it ended in an earlier decision."""
    drawn: Drawn | None = None
    """Of its roll-out."""
    parts: np.ndarray | None = None
    """What each part of the score adds."""
    score: float = 0.0
    """All together."""
    log_weight: float = 0.0
    """Of a particle, since it was last drawn again."""
    ancestor: int | None = None
    """Of a particle, the row that it began in."""
