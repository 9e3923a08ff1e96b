"""Whether a model's head is its embedding: what the files hold goes before what the settings say."""

from pathlib import Path

from dera_jax.common.notes import note
from dera_jax.common.shown import shown
from dera_jax.policies import names, tensors


def is_tied(folder: Path, name_map: names.NameMap, said: bool) -> bool:
    """Returns whether the head is the embedding, as transformers decides it.

    A head that differs from the embedding beside it is used, which a line on stderr tells.

    Args:
      said: what the settings say, or the family's default where they are silent.
    """
    if not said or not tensors.has_weights(folder):
        return said
    listed = tensors.list_tensors(folder)
    head, embedding = (
        names.find(str(name_map.names[path]), name_map, listed) for path in ("head.kernel", "embed.embedding")
    )
    if head is None or embedding is None or tensors.equal(listed[head], listed[embedding]):
        return True
    note(
        f"{shown(folder, 200)}: {head} differs from {embedding} and is used, though the settings tie them "
        '("tie_word_embeddings": false in config.json says the same)'
    )
    return False
