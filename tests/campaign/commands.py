"""The commands that cases run, each with words under which it succeeds on the valid files."""

from dataclasses import dataclass, field

from tests.campaign.start import DECODE, LENGTH, LENGTHS, PAIR, STOPPED, SWEEP, TRAIN

JUDGED = ["--timeout=2", "--retries=0", "--concurrency=1", "--cache=answers"]


@dataclass(frozen=True)
class Command:
    """A command."""

    module: str
    words: list[str]
    writes: tuple[str, ...] = ()
    """Files and folders that it may change, by the start of their path."""
    runs: tuple[str, ...] = ()
    """Of `writes`, runs that were there before: nothing in them changes if the command refuses its input."""
    environment: dict = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The function to call."""
        return f"dera_jax.commands.{self.module}:main"


def _train(name: str, *words: str) -> Command:
    return Command(name, ["--model=aligned", *TRAIN, "--out=new", *words], ("new",))


def _sweep(*words: str, writes: str = "new", runs: tuple = ()) -> Command:
    return Command("sweep", [*words, f"--out={writes}"], (writes,), runs)


PICTURES = ("run/sweep.png", "run/summary.csv")
CURVE = tuple(f"run/{name}" for name in ("curve.csv", "curve.json", "curve.png", "normalizers.json"))
SFT = ("--data=completions.jsonl", LENGTH)
DPO = ("--reference=reference", "--data=pairs.jsonl", LENGTH, "--beta=0.1")
COMMANDS = {
    "sweep": _sweep(*SWEEP, "--lambda=0,1", f"--reward={LENGTHS}"),
    "sweep grows": _sweep(
        *SWEEP, "--lambda=0,0.5,1,2", f"--reward={LENGTHS},lexicon:words.txt", writes="run", runs=("run",)
    ),
    "sweep parted": _sweep(*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", writes="parted", runs=("parted",)),
    "sweep chat": _sweep(*PAIR, *DECODE, "--prompts=chat.jsonl", "--lambda=0,1", "--chat-template=template.jinja"),
    "sweep own chat": _sweep(*PAIR, *DECODE, "--prompts=chat.jsonl", "--lambda=0,1"),
    "sweep txt": _sweep(*PAIR, *DECODE, "--prompts=prompts.txt", "--lambda=0,1"),
    "sweep gz": _sweep(*PAIR, *DECODE, "--prompts=prompts.jsonl.gz", "--lambda=0,1"),
    "sweep parquet": _sweep(*PAIR, *DECODE, "--prompts=prompts.parquet", "--lambda=0,1"),
    "sweep config": _sweep(*PAIR, "--prompts=prompts.jsonl", "--config=config.json"),
    "sweep adapter": _sweep("--reference=reference", "--aligned=reference+adapter", *SWEEP[2:], "--lambda=0,1"),
    "sweep shards": _sweep("--reference=reference", "--aligned=sharded", *SWEEP[2:], "--lambda=0,1"),
    "sweep int8": _sweep(*SWEEP, "--lambda=0,1", "--quantize=int8"),
    "sweep judge": _sweep(*SWEEP, "--lambda=0,1", "--reward=model:judge"),
    "sweep mine": _sweep(*SWEEP, "--lambda=0,1", "--reward=python:mine:reward"),
    "sweep rule": _sweep(*SWEEP, "--lambda=0,1", "--rule=mine:rule"),
    "dry run": _sweep(*SWEEP, "--lambda=0,0.5,1", f"--reward={LENGTHS}", "--dry-run", writes="run"),
    "generate": Command("generate", [*PAIR, *DECODE, "--prompt=Mira visits", "--lambda=0,1"]),
    "generate chat": Command(
        "generate", [*PAIR, *DECODE, "--prompt=Mira", "--chat", "--lambda=0,1", "--chat-template=template.jinja"]
    ),
    "generate rule": Command("generate", [*PAIR, *DECODE, "--prompt=Mira", "--lambda=0,1", "--rule=mine:rule"]),
    "score": Command("score", ["run", "--reward=keywords:a|the"], ("run",), ("run",)),
    "score parted": Command("score", ["parted", "--reward=keywords:a|the"], ("parted",), ("parted",)),
    "score lexicon": Command(
        "score", ["run", "--reward=lexicon:words.txt", "--prompts=prompts.jsonl"], ("run",), ("run",)
    ),
    "score judge": Command("score", ["run", "--reward=model:judge"], ("run",), ("run",)),
    "score mine": Command("score", ["run", "--reward=python:mine:reward"], ("run",), ("run",)),
    "score endpoint": Command(
        "score", ["run", "--judge=URL,m", "--question=mt-bench", *JUDGED], ("run", "answers"), ("run",)
    ),
    "score pairs": Command("score", [*PAIR, "--pairs=pairs.jsonl", "--lambda=0,1", "--out=new.json"], ("new.json",)),
    "score models": Command(
        "score", ["--models=aligned,reference", "--prompts=prompts.txt", "--out=new.json"], ("new.json",)
    ),
    "plot": Command("plot", ["run"], PICTURES),
    "plot two": Command("plot", ["run", "other", "--out=new.png"], ("new.png",)),
    "table": Command("plot", ["run", "--table=markdown"]),
    "table latex": Command("plot", ["run", "--table=latex"]),
    "table parted": Command("plot", ["parted", "--table=terminal"]),
    "table gz": Command("plot", ["packed-gz", "--table=terminal"]),
    "table xz": Command("plot", ["packed-xz", "--table=terminal"]),
    "tune": Command("tune", ["run", "--out=new.json", "--plot=new.png"], ("new.json", "new.png")),
    "tune two": Command("tune", ["run", "--validation=other", "--kl-price=0.1"]),
    "tune gz": Command("tune", ["packed-gz"]),
    "curve": Command("curve", ["run", "--limit-means=absorb"], CURVE, ("run",)),
    "curve per token": Command("curve", ["run", "--per-token", "--grid=0,0.5,1"], CURVE, ("run",)),
    "curve again": Command("curve", ["curved"], ("curved",)),
    "tune curve": Command("tune", ["curved/curve.json", "--out=new.json", "--plot=new.png"], ("new.json", "new.png")),
    "optimum": Command(
        "optimum", ["run", f"--reward={LENGTHS}", "--beta=0.1", "--lambda=0,1", "--of=other", "--out=new"], ("new",)
    ),
    "compare": Command("compare", ["run", "other", f"--judge={LENGTHS}", "--out=new.json"], ("new.json",)),
    "compare one": Command("compare", ["run", "run", "--against=0", "--judge=length:1:4"]),
    "compare xz": Command("compare", ["packed-xz", "other", "--judge=length:1:4"]),
    "compare mine": Command("compare", ["run", "other", "--judge=python:mine:reward"]),
    "compare judge": Command("compare", ["run", "other", "--judge=model:judge"]),
    "compare endpoint": Command("compare", ["run", "other", "--judge=URL,m", *JUDGED], ("answers",)),
    "combine": Command("combine", [*PAIR, "--lambda=0.5", "--out=new"], ("new",)),
    "combine shards": Command(
        "combine", ["--reference=reference", "--aligned=sharded", "--lambda=0.5", "--out=new"], ("new",)
    ),
    "sft": _train("sft", *SFT),
    "sft packed": _train("sft", *SFT, "--packing"),
    "sft messages": _train("sft", "--data=messages.jsonl", LENGTH),
    "sft text": _train("sft", "--data=texts.jsonl", LENGTH),
    "sft txt": _train("sft", "--data=prompts.txt", "--eval-data=texts.jsonl", LENGTH),
    "sft lora": Command("sft", ["--model=reference+adapter", *TRAIN, *SFT, "--lora-r=2", "--out=new"], ("new",)),
    "sft goes on": Command("sft", STOPPED, ("stopped",)),
    "dpo": _train("dpo", *DPO),
    "dpo transcripts": _train("dpo", "--data=transcripts.jsonl", LENGTH),
    "dpo kto": _train("dpo", "--data=kto.jsonl", "--loss=kto", LENGTH),
    "dpo again": Command(
        "dpo", ["--model=reference", *TRAIN, "--data=pairs.jsonl", "--eval-data=transcripts.jsonl", "--beta=0.1",
                LENGTH, "--learning-rate=0.01", "--out=aligned"], ("aligned",),
    ),
    "reward": _train("reward", "--data=pairs.jsonl", LENGTH),
    "rlhf": _train(
        "rlhf", "--data=prompts.jsonl", f"--reward={LENGTHS}", "--num-samples=2", "--max-new-tokens=8", "--beta=0.1"
    ),
    "rlhf mine": _train(
        "rlhf", "--data=prompts.jsonl", "--reward=python:mine:reward", "--num-samples=2", "--max-new-tokens=8"
    ),
    "rlhf judge": _train(
        "rlhf", "--data=prompts.jsonl", "--reward=model:judge", "--num-samples=2", "--max-new-tokens=8"
    ),
    "plan": Command("plan", [*PAIR, "--topology=nonsense"]),
    "lm_eval": Command("lm_eval", [*PAIR, "--lambda=0,1"]),
    "dera": Command("dera", ["plot", "run", "--table=terminal"]),
}  # fmt: skip
"""By name. `plan` and `lm_eval` are refused as they stand: what they would do takes too long here."""
REFUSED = ("plan", "lm_eval")
