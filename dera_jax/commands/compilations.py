"""Where compiled programs are kept from one command to the next."""

import os

from dera_jax.folders import cache_folder

MOST_BYTES = 4 * 2**30
"""Of compiled programs; the least used are removed."""


def keep_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next command need not compile them.

    The folder is `dera_jax` in XDG_CACHE_HOME or ~/.cache. JAX_COMPILATION_CACHE_DIR names another;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # Small models have many programs, each of which compiles in less than JAX's second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()  # it may have seen that there is none
