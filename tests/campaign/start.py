"""The valid files that all cases start from: models, trainings, runs and data, made by the commands themselves."""

import gzip
import json
import lzma
import os
import shutil
import signal
from pathlib import Path

LENGTHS = "length:2:6"
DECODE = ["--max-new-tokens=8", "--rows=4"]
PAIR = ["--reference=reference", "--aligned=aligned"]
SWEEP = [*PAIR, *DECODE, "--prompts=prompts.jsonl"]
TRAIN = ["--max-steps=2", "--batch-size=4"]
LENGTH = "--max-length=64"
STOPPED = [
    "--model=base",
    "--max-steps=3",
    "--batch-size=4",
    "--data=completions.jsonl",
    LENGTH,
    "--save-steps=1",
    "--out=stopped",
]
PROMPTS = [
    f"{start}{name}{end}"
    for start, end in (("How is ", "?"), ("Sam visits ", ", the painter of Sund."), ("Who is ", "?"))
    for name in ("Mira", "Ida", "Anna", "Tom", "Eva", "Jon", "Lea", "Max")
]
"""As many as `eval.tune` wants at least."""
ANSWERS = [" She is well.", " Ida paints.", " They talk a while.", " Anna is."] * 6
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_lines(path: Path, records: list) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def write_data(folder: Path) -> None:
    """Writes data of every shape that the commands read."""
    asked = list(zip(PROMPTS, ANSWERS, strict=True))
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in asked
    ]
    write_lines(
        folder / "prompts.jsonl",
        [
            {"id": f"p{i}", "prompt": prompt, "prefix": " Well,", "topic": "people"}
            for i, prompt in enumerate(PROMPTS)
        ],
    )
    write_lines(folder / "chat.jsonl", [{"messages": [{"role": "user", "content": p}]} for p in PROMPTS])
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress((folder / "prompts.jsonl").read_bytes()))
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(
        pyarrow.table({"prompt": PROMPTS, "topic": ["people"] * len(PROMPTS)}), folder / "prompts.parquet"
    )
    write_lines(folder / "completions.jsonl", [{"prompt": p, "completion": a} for p, a in asked])
    write_lines(folder / "messages.jsonl", [{"messages": each} for each in turns])
    write_lines(folder / "texts.jsonl", [{"text": p + a} for p, a in asked])
    pairs = [{"prompt": p, "chosen": a, "rejected": " Tom saw a dog."} for p, a in asked]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(
        folder / "kto.jsonl",
        [{"prompt": p, "completion": a, "label": i % 2 == 0} for i, (p, a) in enumerate(asked * 2)],
    )
    write_lines(
        folder / "transcripts.jsonl",
        [
            {"chosen": f"\n\nHuman: {p}\n\nAssistant:{a}", "rejected": f"\n\nHuman: {p}\n\nAssistant: No."}
            for p, a in asked
        ],
    )
    (folder / "words.txt").write_text("well\t1.5\nsad\t-2.0\na\t0.25\nthe\t0.5\n")
    (folder / "template.jinja").write_text(TEMPLATE)
    settings = {"lambda": [0, 1], "max-new-tokens": 8, "rows": 4, "num-prompts": 2, "stop": ["x", "y"]}
    (folder / "config.json").write_text(
        json.dumps(settings | {"dry-run": False, "reward": LENGTHS, "seed": 3})
    )
    (folder / "mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def reward(completions, **columns):\n    return [float(len(text)) for text in completions]\n"
        "def rule(logits, weights, state):\n"
        "    return jnp.einsum('mrv,rm->rv', logits, weights, precision='highest'), state\n"
    )


def write_base(folder: Path) -> None:
    """Writes a random model of 40 000 parameters with the toy pair's tokenizer."""
    from dataclasses import replace

    from dera_jax.policies import load
    from dera_jax.policies.policy import TOY
    from dera_jax.policies.save import save_policy

    raw = json.loads((TOY / "reference" / "config.json").read_text())
    raw |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    raw |= {"head_dim": 8, "intermediate_size": 48}
    made = Path(shutil.copytree(TOY / "reference", folder))
    for name in ("manifest.json", "model.safetensors"):
        (made / name).unlink()
    (made / "config.json").write_text(json.dumps(raw, indent=2))
    (made / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2], "temperature": 0.7, "top_k": 5})
    )
    (made / "chat_template.jinja").write_text(TEMPLATE)
    policy = load.fresh_policy(str(made), 0)
    save_policy(replace(policy, name="base"), made)


def write_shards(source: Path, folder: Path) -> None:
    """Writes a model as two files and their index."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("best", "checkpoints", ".lock", "metrics*"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    size = sum(each.nbytes for each in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def make(words: list[str]) -> int:
    """Makes all of it in the current folder."""
    from dera_jax.commands import curve, dpo, reward, sft, sweep

    here = Path.cwd()
    write_data(here)
    write_base(here / "base")
    for command, *more in (
        (
            sft,
            "--model=base",
            "--data=completions.jsonl",
            "--eval-data=texts.jsonl",
            "--out=reference",
            LENGTH,
            "--learning-rate=0.01",
        ),
        (
            dpo,
            "--model=reference",
            "--data=pairs.jsonl",
            "--eval-data=transcripts.jsonl",
            "--out=aligned",
            "--beta=0.1",
            LENGTH,
            "--learning-rate=0.01",
        ),
        (sft, "--model=reference", "--data=completions.jsonl", "--out=adapter", "--lora-r=2", LENGTH),
        (reward, "--model=reference", "--data=pairs.jsonl", "--out=judge", LENGTH),
    ):
        assert command.main([*TRAIN, *more]) == 0, more
    write_shards(here / "aligned", here / "sharded")
    for out, seed in (("run", 0), ("other", 1)):
        words = [*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", f"--out={out}", f"--seed={seed}"]
        assert sweep.main(words) == 0
    shutil.copytree(here / "run", here / "curved")
    assert curve.main(["curved", "--grid=0:1:0.25", "--limit-means=absorb"]) == 0
    write_packed(here)
    write_stopped()
    write_answer(here)
    return 0


def write_answer(here: Path) -> None:
    """Leaves the answers of a judge behind a URL in its cache."""
    from tests.campaign import inputs, judge_server

    judge_server.choose_port()
    (here / "answer.json").write_text(json.dumps(inputs.ANSWER))
    run = shutil.copytree(here / "run", here / "judged")
    words = ["judged", "--judge=URL,m", "--question=mt-bench", "--retries=0", "--cache=answers"]
    assert judge_server.main(["dera_jax.commands.score", *words]) == 0
    shutil.rmtree(run)


def write_stopped() -> None:
    """Leaves a training as SIGTERM does after two of its three steps."""
    from dera_jax.commands import sft
    from dera_jax.training.checkpoints import Checkpoints

    save = Checkpoints.save

    def stopping(self, step, *more):
        save(self, step, *more)
        os.kill(os.getpid(), signal.SIGTERM)

    Checkpoints.save = stopping
    try:
        sft.main(STOPPED)
    finally:
        Checkpoints.save = save
    assert [path.name for path in sorted(Path("stopped", "checkpoints").iterdir())][-1:] == ["2"]


def write_packed(here: Path) -> None:
    """Writes the run with compressed rows, and with rows in the files of single processes."""
    rows = (here / "run" / "rows.jsonl").read_bytes()
    for name, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
        folder = here / f"packed-{name}"
        folder.mkdir()
        shutil.copy(here / "run" / "manifest.json", folder)
        (folder / f"rows.jsonl.{name}").write_bytes(pack(rows))
    parted = Path(shutil.copytree(here / "run", here / "parted"))
    lines = rows.splitlines(keepends=True)
    (parted / "rows.jsonl").write_bytes(b"".join(lines[:-3]))
    (parted / "rows-1.jsonl").write_bytes(b"".join(lines[-3:]))
