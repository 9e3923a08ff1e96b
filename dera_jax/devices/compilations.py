"""Where compiled programs are kept from one command to the next."""

import tempfile
import warnings
from pathlib import Path

from dera_jax.common.folders import cache_folder
from dera_jax.common.notes import Tell
from dera_jax.common.shown import shown

MOST_BYTES = 4 * 2**30
"""Of compiled programs; the least used are removed."""
ROOM = 2**16
"""Bytes that must be free: a small program."""


def keep_compilations(tell: Tell = warnings.warn) -> None:
    """Keeps compiled programs in the user's cache folder, so that the next command need not compile them.

    The folder is `dera_jax` in XDG_CACHE_HOME or ~/.cache. JAX_COMPILATION_CACHE_DIR names another;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.

    Args:
      tell: hears the warning where nothing can be kept.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder()
    if reason := _unusable(folder):
        tell(f"compiled programs are not kept: {shown(folder, 200)}: {reason}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # Small models have many programs, each of which compiles in less than JAX's second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()  # it may have seen that there is none
    # Of each program that does not fit on the disk any more.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)


def _unusable(folder: Path) -> str | None:
    """Returns why nothing can be kept in a folder, which is made; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * ROOM)
    except OSError as error:
        return error.strerror
    return None
