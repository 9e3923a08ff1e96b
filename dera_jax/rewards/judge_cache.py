"""Answers of judges on disk: each under a hash of its request, so that none is paid for twice."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dera_jax.common.files import make_folder
from dera_jax.common.folders import cache_folder
from dera_jax.common.json_files import encode_json, read_json, write_json
from dera_jax.common.shown import shown


def default_cache() -> Path:
    """Returns the folder where judges' answers are kept: `dera_jax/judge` in XDG_CACHE_HOME or ~/.cache."""
    return cache_folder() / "judge"


@dataclass(frozen=True)
class Cache:
    """The answers of one URL."""

    folder: Path
    url: str

    def name(self, body: Mapping) -> str:
        """Returns what a request's answer is kept under."""
        return hashlib.sha256(encode_json([self.url, body])).hexdigest()

    def read(self, body: Mapping) -> str | None:
        """Returns the answer to a request, None if there is none.

        Raises:
          ValueError: the file is broken, or of another request. It was paid for, so it is not written over.
        """
        path = self._path(body)
        if not path.exists():
            return None
        made = read_json(path)
        if not isinstance(made, dict) or not isinstance(made.get("answer"), str):
            raise ValueError(f"{shown(path, 200)}: expected a judge's answer; remove the file to ask again")
        if made != self._made(body, made["answer"]):
            raise ValueError(
                f"{shown(path, 200)}: holds the answer to another request; remove it to ask again"
            )
        return made["answer"]

    def write(self, body: Mapping, answer: str) -> None:
        """Keeps the answer to a request."""
        path = self._path(body)
        make_folder(path.parent)
        write_json(path, self._made(body, answer))

    def _made(self, body: Mapping, answer: str) -> dict:
        return {"url": self.url, **body, "answer": answer}

    def _path(self, body: Mapping) -> Path:
        name = self.name(body)
        return self.folder / name[:2] / f"{name}.json"
