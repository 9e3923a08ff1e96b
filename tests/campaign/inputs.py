"""Bad inputs: every kind of file, what is done to it, and the commands that read it; a case is its name.

A name is `KIND | COMMAND | CHANGE`. What a change draws depends on the name alone, so a name repeats its case.
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import mutations, semantics, words

RUN = [
    "sweep grows", "score", "plot", "table", "table latex", "tune", "compare", "compare one",
    "curve", "curve per token", "optimum",
]  # fmt: skip
MODEL = ["sweep", "generate", "score pairs", "score models", "combine", "sft", "dpo", "reward", "rlhf"]
KINDS = {
    "rows": ("run/rows.jsonl", "lines", [*RUN, "dry run", "plot two", "tune two", "compare mine"]),
    "rows of a process": ("parted/rows-1.jsonl", "lines", ["sweep parted", "score parted", "table parted"]),
    "rows, gz": ("packed-gz/rows.jsonl.gz", "bytes", ["table gz", "tune gz"]),
    "rows, xz": ("packed-xz/rows.jsonl.xz", "bytes", ["table xz", "compare xz"]),
    "run's manifest": ("run/manifest.json", "json", [*RUN, "plot two", "tune two", "compare endpoint"]),
    "curve": ("curved/curve.json", "json", ["tune curve"]),
    "normalizers": ("curved/normalizers.json", "json", ["curve again"]),
    "lock": ("run/.lock", "bytes", ["sweep grows", "score"]),
    "config": ("aligned/config.json", "json", [*MODEL, "sweep int8"]),
    "tokenizer": ("aligned/tokenizer.json", "json", ["sweep", "sft", "combine"]),
    "tokenizer's config": ("aligned/tokenizer_config.json", "json", ["sweep", "generate chat", "sft", "combine"]),
    "generation config": ("aligned/generation_config.json", "json", ["sweep", "combine", "dpo", "rlhf"]),
    "model's manifest": ("aligned/manifest.json", "json", ["sweep", "generate", "tune", "combine", "plot"]),
    "weights": ("aligned/model.safetensors", "bytes", [*MODEL, "sweep int8"]),
    "index": ("sharded/model.safetensors.index.json", "json", ["sweep shards", "combine shards"]),
    "shard": ("sharded/model-00001-of-00002.safetensors", "bytes", ["sweep shards", "combine shards"]),
    "model's template": ("aligned/chat_template.jinja", "text", ["sweep own chat", "sft messages", "generate chat"]),
    "adapter's config": ("adapter/adapter_config.json", "json", ["sweep adapter", "sft lora"]),
    "adapter's weights": ("adapter/adapter_model.safetensors", "bytes", ["sweep adapter", "sft lora"]),
    "adapter's manifest": ("adapter/manifest.json", "json", ["sweep adapter", "sft lora"]),
    "judge's config": ("judge/config.json", "json", ["score judge", "sweep judge", "compare judge", "rlhf judge"]),
    "judge's weights": ("judge/model.safetensors", "bytes", ["score judge", "sweep judge"]),
    "judge's tokenizer": ("judge/tokenizer_config.json", "json", ["score judge", "rlhf judge"]),
    "prompts": ("prompts.jsonl", "lines", ["sweep", "rlhf", "sweep grows"]),
    "prompts, chat": ("chat.jsonl", "lines", ["sweep chat", "sweep own chat"]),
    "prompts, txt": ("prompts.txt", "text", ["sweep txt", "score models", "sft txt"]),
    "prompts, gz": ("prompts.jsonl.gz", "bytes", ["sweep gz"]),
    "prompts, parquet": ("prompts.parquet", "bytes", ["sweep parquet"]),
    "completions": ("completions.jsonl", "lines", ["sft", "sft packed"]),
    "messages": ("messages.jsonl", "lines", ["sft messages"]),
    "texts": ("texts.jsonl", "lines", ["sft text", "sft txt"]),
    "pairs": ("pairs.jsonl", "lines", ["dpo", "reward", "score pairs"]),
    "transcripts": ("transcripts.jsonl", "lines", ["dpo transcripts"]),
    "labels": ("kto.jsonl", "lines", ["dpo kto"]),
    "options": ("config.json", "json", ["sweep config"]),
    "lexicon": ("words.txt", "text", ["score lexicon", "sweep grows"]),
    "template": ("template.jinja", "text", ["sweep chat", "generate chat"]),
    "reward's module": ("mine.py", "text", ["score mine", "sweep mine", "rlhf mine", "compare mine"]),
    "rule's module": ("mine.py", "text", ["sweep rule", "generate rule"]),
    "checkpoint's record": ("stopped/checkpoints/2/record.json", "json", ["sft goes on"]),
    "checkpoint's state": ("stopped/checkpoints/2/state/_CHECKPOINT_METADATA", "json", ["sft goes on"]),
    "training's manifest": ("stopped/manifest.json", "json", ["sft goes on"]),
    "training's metrics": ("stopped/metrics.jsonl", "lines", ["sft goes on"]),
    "ended training": ("aligned/manifest.json", "json", ["dpo again"]),
    "best manifest": ("aligned/best/manifest.json", "json", ["dpo again"]),
    "cached logprobs": ("aligned/cache/", "bytes", ["dpo again"]),
    "answer": ("answer.json", "json", ["score endpoint", "compare endpoint"]),
    "cached answer": ("answers/", "json", ["score endpoint"]),
    "words": ("", "words", []),
    "machine": ("", "machine", []),
}  # fmt: skip
"""Kind to its file, its form, and the commands that read it."""
ANSWER = {
    "id": "1", "object": "chat.completion", "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "[[A]] [[7]]"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}  # fmt: skip
"""Of a judge behind a URL."""

INERT = re.compile(
    r'"(transformers_version|initializer_range|pretraining_tp|use_cache|attention_dropout|versions|git|platform|peft_version|'
    r'commit_timestamp_nsecs|init_timestamp_nsecs|local_files_only|is_local|usage|object|train_config|id|topic)"[],]'
)
"""Fields that hardly anything reads: they are drawn when the others have been."""


@dataclass(frozen=True)
class Case:
    """A bad input."""

    kind: str
    command: str
    change: str

    @property
    def name(self) -> str:
        """What the case is called and made from."""
        return f"{self.kind} | {self.command} | {self.change}"

    @property
    def sort(self) -> str:
        """What the change is, wherever it strikes."""
        return self.change.rpartition("=")[2] if "=" in self.change else self.change.rstrip("0123456789 ")


def parse(name: str) -> Case:
    """Returns the case of a name.

    Raises:
      ValueError: it is the name of none.
    """
    parts = name.split(" | ", 2)
    if len(parts) != 3 or parts[0] not in KINDS:
        raise ValueError(f"no case: {name!r}; expected KIND | COMMAND | CHANGE, as the failures are written")
    return Case(*parts)


def find(shelf: Path, kind: str) -> str:
    """Returns the file of a kind, by its path in the valid files; of a folder the first file in it."""
    path = KINDS[kind][0]
    if not path.endswith("/"):
        return path
    found = sorted(each for each in (shelf / path).rglob("*") if each.is_file())
    return str(found[0].relative_to(shelf)) if found else path


def document(shelf: Path, kind: str):
    """Returns the JSON document of a kind: of lines the second."""
    if kind == "answer":
        return ANSWER
    path, form = find(shelf, kind), KINDS[kind][1]
    text = (shelf / path).read_text()
    return json.loads(text.split("\n")[1] if form == "lines" else text)


def changes(shelf: Path, kind: str) -> Iterator[str]:
    """Yields the names of all that is done to the file of a kind."""
    form = KINDS[kind][1]
    if form in ("json", "lines"):
        yield from (f"json {name}" for name in mutations.changes(document(shelf, kind)))
    yield from (f"bytes {name}" for name in mutations.byte_changes())
    if kind != "answer":
        yield from (f"place {name}" for name in mutations.PLACES)
    yield from (f"special {name}" for name in semantics.SPECIAL.get(kind, {}))


def all_cases(shelf: Path) -> dict[tuple[str, str], list[Case]]:
    """Returns all cases by kind and command."""
    found = {}
    for kind, (_, form, commands) in KINDS.items():
        if form == "words":
            found |= {(kind, each): [Case(kind, each, c) for c in words.changes(each)] for each in words.BASE}
        elif form == "machine":
            found |= {
                (kind, each): [Case(kind, each, c) for c in words.MACHINES] for each in words.ON_MACHINES
            }
        else:
            names = list(changes(shelf, kind))
            found |= {(kind, each): [Case(kind, each, name) for name in names] for each in commands}
    return found


def sample(cases: dict[tuple[str, str], list[Case]], count: int, seed: int) -> list[Case]:
    """Returns `count` cases: of all kinds and commands in turn, each time a change that was rare so far."""
    draw, used = random.Random(seed), Counter()
    pools = {pair: sorted(draw.sample(each, len(each)), key=_inert) for pair, each in cases.items()}
    # Kinds before pairs: a kind that many commands read is not met more often than its share.
    order = draw.sample(list(pools), len(pools))
    chosen: list[Case] = []
    while len(chosen) < count and any(pools.values()):
        for kind in draw.sample(list(KINDS), len(KINDS)):
            pairs = [pair for pair in order if pair[0] == kind and pools[pair]]
            if not pairs or len(chosen) >= count:
                continue
            pair = min(pairs, key=lambda p: used[p])
            case = min(pools[pair][:60], key=lambda c: used[_family(c)] + 0.3 * used[c.kind, c.sort])
            pools[pair].remove(case)
            used.update([pair, _family(case), (case.kind, case.sort)])
            chosen.append(case)
    return chosen


def _inert(case: Case) -> bool:
    return case.change.startswith("json ") and bool(INERT.search(case.change))


def _family(case: Case) -> str:
    return f"{case.change.split(' ')[0]} {case.sort}" if not case.change.startswith("special") else case.name


def spoil(shelf: Path, sandbox: Path, case: Case) -> None:
    """Does to the sandbox, a copy of the shelf, what the case says."""
    what, _, name = case.change.partition(" ")
    path = sandbox / find(shelf, case.kind)
    if case.kind == "answer":
        path.write_text(json.dumps(ANSWER))
    if what == "special":
        semantics.SPECIAL[case.kind][name](sandbox)
    elif what == "place":
        mutations.put(path, name)
    elif what == "bytes":
        path.write_bytes(mutations.change_bytes(path.read_bytes(), name, case.name))
    elif what == "json":
        text = mutations.change(document(shelf, case.kind), name)
        if KINDS[case.kind][1] == "lines":
            lines = path.read_text().split("\n")
            lines[1] = text
            text = "\n".join(lines)
        path.write_text(text)
    if case.kind == "reward's module" or case.kind == "rule's module":
        shutil.rmtree(sandbox / "__pycache__", ignore_errors=True)
