"""Makes the shipped toy pair: text, tokenizer, reference (SFT), aligned (policy gradient).

  python scripts/make_toy.py [--out=dera_jax/assets/toy] [--work=runs/toy] [--seed=0]

From the repository's root; takes about five minutes on two cores. Everything comes from the grammar in
`toy_grammar.py` and from this project's own training commands. The reward asks for completions of 16 to
24 tokens, which a fifth of the reference's are.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from toy_grammar import write_stories
from transformers import LlamaConfig, PreTrainedTokenizerFast

HELD_OUT = 256
"""Prompts that are shipped; training does not see them."""
STORIES = 30_000
"""Written; those that are too long are left out."""
VOCABULARY = 512
LONGEST_PROMPT, LONGEST_COMPLETION = 16, 64
"""In tokens, with BOS and EOS."""
CONTEXT = 256
"""Longest text, in tokens."""

SFT = dict(max_steps=1600, batch_size=32, learning_rate=6e-3, warmup_ratio=0.02)
RLHF = dict(
    reward="length:16:24", beta=0.1, max_steps=60, batch_size=128, learning_rate=8e-4,
    num_samples=4, max_new_tokens=LONGEST_COMPLETION,
)  # fmt: skip
"""Few steps: the aligned model leaves something to gain for strengths above 1."""


def main(argv: list[str] | None = None) -> None:
    """Runs all stages; the pair is put in place last, whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("dera_jax/assets/toy"), help="(default %(default)s)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/toy"),
        help="for what is not shipped; replaced (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (default %(default)s)")
    args = parser.parse_args(argv)
    work, start = args.work, time.perf_counter()
    for name in ("init", "reference", "aligned"):
        shutil.rmtree(work / name, ignore_errors=True)

    say(start, "text and tokenizer")
    stories = list(islice(write_stories(args.seed), STORIES))
    tokenizer = train_tokenizer(opening + continuation for opening, continuation in stories)
    tokenizer.save_pretrained(work / "init")
    llama_config(tokenizer).save_pretrained(work / "init")
    openings, stories = split_stories([story for story in stories if fits(tokenizer, *story)])
    held_out, openings = openings[:HELD_OUT], openings[HELD_OUT:]
    write_jsonl(work / "prompts.jsonl", ({"id": f"toy-{i:03}", "prompt": p} for i, p in enumerate(held_out)))
    write_jsonl(work / "openings.jsonl", ({"prompt": p} for p in openings))
    write_jsonl(work / "train.jsonl", ({"prompt": p, "completion": c} for p, c in stories))

    say(start, f"reference: {SFT['max_steps']} steps of SFT from random weights")
    train(
        "sft",
        model=work / "init",
        from_scratch=True,
        data=work / "train.jsonl",
        out=work / "reference",
        seed=args.seed,
        **SFT,
    )

    say(start, f"aligned: {RLHF['max_steps']} steps of policy gradient with reward {RLHF['reward']}")
    train(
        "rlhf",
        model=work / "reference",
        data=work / "openings.jsonl",
        out=work / "aligned",
        seed=args.seed,
        **RLHF,
    )

    ship(work, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    say(start, f"done: {size / 1e6:.1f} MB in {args.out}")


def fits(tokenizer: PreTrainedTokenizerFast, opening: str, continuation: str) -> bool:
    """Whether a story fits the shape that all batches then have, so that it is compiled once."""
    prompt, completion = tokenizer([opening, continuation]).input_ids
    # The completion has EOS where the tokenizer puts BOS.
    return len(prompt) <= LONGEST_PROMPT and len(completion) <= LONGEST_COMPLETION


def split_stories(stories: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns all openings, and the stories without the first `HELD_OUT` of them."""
    openings = list(dict.fromkeys(opening for opening, _ in stories))
    held_out = set(openings[:HELD_OUT])
    return openings, [story for story in stories if story[0] not in held_out]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer, which can encode any text and puts <s> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Returns the toy's architecture: 0.3 million parameters."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=80,
        intermediate_size=208,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(command: str, **options) -> None:
    """Runs a training command of this project; ends the script if it fails."""
    words = [
        f"--{name}".replace("_", "-") + ("" if value is True else f"={value}")
        for name, value in options.items()
    ]
    print(" ", " ".join(["python", "-m", f"train.{command}", *words]), flush=True)
    done = subprocess.run([sys.executable, "-m", f"train.{command}", *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def ship(work: Path, out: Path) -> None:
    """Puts prompts and models, without what training told, in place of what `out` had."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("reference", "aligned"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
        for path in sorted((work / name).iterdir()):
            if path.is_file() and path.suffix != ".jsonl":
                shutil.copyfile(path, out / name / path.name)
    shutil.copyfile(work / "prompts.jsonl", out / "prompts.jsonl")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Writes one object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def say(start: float, what: str) -> None:
    """Prints a stage and the seconds since the start."""
    print(f"[{time.perf_counter() - start:4.0f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
