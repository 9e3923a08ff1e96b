"""Rows and run folders: what a sweep writes, and what metrics, plots and tables read.

A run is a folder. `rows.jsonl` holds one JSON object per completion, `manifest.json` says what the
run is and how it was made. While several processes decode, each has its own `rows-<process>.jsonl`,
which the first takes in at the end, or the next run if they do not come that far. A row has the fields

  field              unit    meaning
  prompt_id                  the prompt's `id` (a string), or its number in the file from 0
  sample                     number of the completion among those of its prompt and strength, from 0
  seed                       of the run
  turn                       number of the answer in a conversation, from 0
  rule                       that turned the models' logits into the logits drawn from
  draw                       what made the completion, where that is not a plain draw
  lambda                     strength: a number; of several aligned models, a list of them
  beta                       KL strength of the aligned model, or null if unknown
  prompt                     text before the completion
  completion                 text, without EOS and from the stop string on
  prompt_tokens      ids     of the prompt; a list per model where they differ
  tokens             ids     of the completion, EOS included
  length             tokens  of the completion, EOS left out
  finish_reason              eos, stop (a stop string) or length (cut off)
  rewards                    {name: number, or null where the reward gave none}
  logprob            nats    of `tokens` under the realigned model
  reference_logprob  nats    under the reference
  aligned_logprob    nats    under the aligned model; of several, a list; of a value head, null
  sampling_logprob   nats    under the distribution drawn from: after temperature and truncation
  kl_to_reference    nats    Σₜ KL(realigned ‖ reference) of the next token, over the vocabulary
  log_normalizer     nats    Σₜ log zₜ of the mixture; null for other rules
  search                     what the completion was chosen from, where several candidates were drawn:
                             {candidates, tokens of all of them, passes (forward passes of each model), score,
                             runner_up (null: only one), trace (with --trace: of each decision the candidates)}

All sums run over `tokens`; all but `sampling_logprob` are at temperature 1, before truncation.
exp(logprob + log_normalizer − sampling_logprob) is the weight of a row that ended with EOS when the
rows of its prompt stand for the mixture of whole responses (Eq. 5) instead of that of tokens (Eq. 6).
"""

import os
import secrets
from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path

from dera_jax.common.files import remove_leftovers, write_bytes
from dera_jax.common.json_files import decode_json, encode_json, write_json
from dera_jax.common.locks import lock_folder, unlock
from dera_jax.common.shown import shown
from dera_jax.results.manifests import FORMAT, LATER, read_manifest, tell_difference
from dera_jax.results.reading import ENDINGS, check_models, new_rows
from dera_jax.results.row_file import RowFile, part_paths
from dera_jax.results.rows import KEY_FIELDS, RowKey, encode_rows, row_key


class RunFolder:
    """A folder that rows are added to, by one run at a time; a context manager.

    *Identity* is what all rows of a folder share: rows of another identity are refused. *Extent*
    (strengths, samples, rewards …) may grow from run to run. The manifest:

      {"format": 1, "identity": {…}, "extent": {…}, "asked": [{…}, …], "provenance": {…},
       "commands": [{"command": […], "time": …, what differs from `provenance`}, …]}

    `asked` is what commands asked for, kept before their first row, `extent` what is there at their end;
    `provenance` is that of the run that made the folder, `commands` are all that wrote rows.

    Attributes:
      rows: all rows so far.
      keys: their `row_key`s.
      manifest: as it is on disk.
    """

    def __init__(
        self, path: str | Path, identity: dict, provenance: dict, needed: Collection[str] = KEY_FIELDS
    ):
        """Names the folder; nothing happens to it before it is entered.

        Args:
          path: of the folder, made if missing.
          identity: JSON.
          provenance: of this run, JSON; see `provenance`.
          needed: fields that no row there may lack.
        """
        self.path = Path(path)
        self.rows: list[dict] = []
        self.keys: set[RowKey] = set()
        self.manifest: dict = {}
        # As it comes back from a file, so that (1, 2) equals [1, 2].
        self._identity = self._told = decode_json(encode_json(identity))
        self._provenance = provenance
        self._needed = needed
        self._recorded = False
        self._lock = -1
        self._file: RowFile | None = None

    def __enter__(self) -> "RunFolder":
        """Locks the folder, reads it, repairs a torn last line and takes in the rows of single processes.

        Nothing is written before everything there has been read.

        Raises:
          ValueError: another run holds it, it holds another run or other things, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            self._lock = lock_folder(self.path)
            remove_leftovers(self.path)
            self._open_manifest()
            with ExitStack() as stack:
                parts = self._open_parts(stack)
                self._open_rows()
                self._check_rows([row for part in parts for row in part.rows])
                self._file.repair()
                self._take_in(parts)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise ValueError(f"cannot write to {shown(self.path, 200)}: {error.strerror}") from None
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock >= 0:
            unlock(self._lock)
        self._lock = -1

    def append(self, rows: list[dict]) -> None:
        """Adds rows, all of them or none, and returns when they are on disk.

        Raises:
          ValueError: they cannot be written (disk full), or hold a number that is not finite.
        """
        if not rows:
            return
        lines = encode_rows(rows)
        self.record_command()
        self._file.append(lines)
        self.rows.extend(rows)
        self.keys.update(map(row_key, rows))

    def replace_rows(self, rows: list[dict]) -> None:
        """Puts other rows in the place of all, at once: the same ones with more rewards, say."""
        lines = encode_rows(rows)
        self.record_command()
        write_bytes(self.path / "rows.jsonl", lines)
        # The open file is the one that was replaced.
        self._file.close()
        self._open_rows()

    def collect(self) -> None:
        """Moves the rows that single processes have written, each to its own file, to those of the folder.

        Raises:
          ValueError: one of them is still writing.
        """
        with ExitStack() as stack:
            self._take_in(self._open_parts(stack))

    def _open_parts(self, stack: ExitStack) -> list[RowFile]:
        paths = part_paths(self.path)
        parts = (RowFile(path, alone=True, needed=self._needed) for path in paths)
        return [stack.enter_context(closing(part)) for part in parts]

    def _check_rows(self, more: list[dict]) -> None:
        aligned = self.manifest["identity"].get("models", {}).get("aligned")
        expected = len(aligned) if isinstance(aligned, list) else None
        check_models([*self.rows, *more], self.path, expected)

    def _take_in(self, parts: list[RowFile]) -> None:
        new = new_rows([row for part in parts for row in part.rows], self.keys)
        if new:
            self.replace_rows([*self.rows, *new])
        for part in parts:
            part.path.unlink()

    def mark(self) -> str:
        """Writes a new text into the file that locks the folder, and returns it.

        Who reads it there sees this folder and not one like it.
        """
        text = secrets.token_hex(8)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text.encode(), 0)
        return text

    def finish(self, extent: dict, extra: dict | None = None) -> None:
        """Records the extent reached, and whatever else (`extra`: more keys) the manifest shall hold."""
        self.record({**(extra or {}), "extent": extent})

    def record(self, changes: dict) -> None:
        """Writes keys of the manifest, if they are not so already."""
        manifest = decode_json(encode_json({**self.manifest, **changes}))
        if manifest != self.manifest:
            write_json(self.path / "manifest.json", manifest)
            self.manifest = manifest

    def _refuse_strangers(self) -> None:
        """Refuses, before anything is written there, a folder with files that no run of ours has made."""
        if (self.path / "manifest.json").exists():
            read_manifest(self.path)
            return
        for path in self.path.iterdir():
            if path.name != ".lock" and not (path.name.startswith(".") and path.suffix == ".tmp"):
                kept = "rows without their manifest.json" if path.name.startswith("rows.") else "no run"
                raise ValueError(
                    f"{shown(self.path, 200)} is not empty and holds {kept} ({shown(path.name, 60)}): "
                    "choose another --out"
                )

    def _open_manifest(self) -> None:
        if not (self.path / "manifest.json").exists():
            manifest = {
                "format": FORMAT,
                "identity": self._identity,
                "extent": {},
                "provenance": self._provenance,
            }
            self.record({**manifest, "commands": []})
            return
        self.manifest = read_manifest(self.path)
        # What an older folder does not tell is taken for what it is now, and told with the next rows.
        there = self.manifest["identity"]
        later = {name: self._identity[name] for name in LATER if name in self._identity}
        self._told = later | there
        difference = tell_difference(self._told, self._identity)
        if difference:
            raise ValueError(f"{shown(self.path, 200)} holds another run: {difference}; choose another --out")

    def _open_rows(self) -> None:
        path = self.path / "rows.jsonl"
        if not path.exists():
            for packed in (Path(f"{path}{ending}") for ending in ENDINGS[1:]):
                if packed.exists():
                    tool = "gunzip" if packed.suffix == ".gz" else "unxz"
                    raise ValueError(
                        f"the rows of {shown(self.path, 200)} are compressed: "
                        f"run `{tool} {shown(packed, 200)}` to add to them"
                    )
        self._file = RowFile(path, needed=self._needed)
        self.rows = self._file.rows
        self.keys = set(map(row_key, self.rows))

    def record_command(self) -> None:
        """Adds this run's command to the manifest, once; adding rows does so by itself."""
        if self._recorded:
            return
        first = self.manifest.get("provenance", {})
        command = {
            name: value
            for name, value in self._provenance.items()
            if name in ("command", "time") or value != first.get(name)
        }
        commands = [*self.manifest.get("commands", []), command]
        self.record({"identity": self._told, "commands": commands})
        self._recorded = True
