"""The paper's experiments at the paper's sizes: what to run, on what, and what to expect of it.

  bash scripts/reproduce.sh --preset=NAME --print     the commands in order, and the record below
  bash scripts/reproduce.sh --preset=NAME             runs what is missing, in runs/NAME
  python -m eval.sweep --preset=NAME …                its way of decoding, as defaults

The small experiments of scripts/reproduce/ are the same code with other names and numbers. None of these has
been run here at full size: what is computed or compiled is said to be, what the paper measured is its own.
Each preset is headed by its record; «ours» is what the paper does not say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getdoc
from typing import Any

from dera_jax.experiments.declare import Experiment, Outside, Place, Step

GRID = tuple(n / 5 for n in range(11))
"""0, 0.2 … 2, the strengths of Fig. 2, 5, 8 and 9."""
WIDE = (0.0, 0.5, 2 / 3, 1.0, 2.0, 5.0, 10.0)
"""Those of Fig. 3, 6 and 7."""
T5_SMALL, T5_LARGE = "google-t5/t5-small", "google-t5/t5-large"
ZEPHYR_SFT, ZEPHYR = "HuggingFaceH4/mistral-7b-sft-beta", "HuggingFaceH4/zephyr-7b-beta"
XSUM, TLDR, TLDR_PAIRS = "hf:EdinburghNLP/xsum", "hf:trl-lib/tldr", "hf:trl-lib/tldr-preference"
ULTRAFEEDBACK = "hf:HuggingFaceH4/ultrafeedback_binarized:train_prefs"
MT_BENCH = Outside("mt_bench/mt_bench_question.jsonl")
"""The questions as FastChat has them."""
JUDGE = "--judge=URL,model"
"""For the reader to fill in."""


@dataclass(frozen=True)
class Preset:
    """An experiment of the paper, with its record."""

    experiment: Experiment
    record: str
    """Hardware, memory, expected numbers, and what is our choice."""
    after: tuple[str, ...] = ()
    """Commands that need a judge, or come last; {results} is where rows are kept."""


def presets() -> dict[str, Preset]:
    """Returns every preset by its name."""
    made: tuple[tuple[Callable[[], Experiment], tuple[str, ...]], ...] = (
        (xsum_t5_small_ppo, (_win_rate("0", "summary"),)),
        (tldr_t5_large_pg, _TLDR_AFTER),
        (tldr_t5_large_dpo, _TLDR_AFTER),
        (zephyr_7b, _ZEPHYR_AFTER),
    )
    found = {}
    for function, after in made:
        experiment = function()
        lines = tuple(line.replace("{name}", experiment.name) for line in after)
        found[experiment.name] = Preset(experiment, getdoc(function) or "", lines)
    return found


def find_preset(name: str) -> Preset:
    """Returns a preset by its name.

    Raises:
      ValueError: there is none of that name.
    """
    known = presets()
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(known)}")
    return known[name]


def sweep_defaults(name: str) -> dict[str, str]:
    """Returns the options of `eval.sweep` that a preset gives: all but what its own steps make.

    >>> sorted(sweep_defaults("zephyr-7b"))[:4]
    ['aligned', 'beta', 'lambda_', 'max_new_tokens']
    """
    sweep = find_preset(name).experiment.dera()
    made = {key for key, value in sweep.options.items() if Step("", "", {key: value}).needs()}
    return {key: text for key, text in sweep.arguments("").items() if key not in {*made, "out"}}


def xsum_t5_small_ppo() -> Experiment:
    """Fig. 2 and 5: T5-small on XSum, rewarded for 40 to 50 tokens (Eq. 10), PPO at β = 0.1 and at 0.1/λ.

    Hardware: one accelerator of 16 GB (T4, v5e chip). Eleven models are trained: SFT, and PPO at ten β.
    Memory: policy and value model of 60.5 M parameters at 16 bytes (weight, gradient, two moments) 1.9 GB,
      reference 0.24 GB, the rest activations; computed, not compiled.
    Expected: mean reward at λ = 0 … 2, retrained −.882 −.840 −.756 −.647 −.434 −.286 −.191 −.152 −.107 −.100
      −.090, DeRa −.882 −.772 −.628 −.499 −.376 −.286 −.206 −.162 −.132 −.121 −.126; mean gap .046, largest .149
      at 0.6. Mean length 32.6 at λ = 0, 44.7 and 46.4 tokens at 2. Judged win rate against SFT falls: .507 to
      .284 (retrained), .502 to .239 (DeRa).
    The paper's: SFT of 15 000 steps with batches of 32; policy learning rate 5e-6; strengths; reward.
    Ours: the value model's learning rate is the policy's (the paper: 1e-5; here they share one optimizer); SFT
      at 3e-4; 2 000 PPO steps of 256 completions, its constants the defaults of train.rlhf; articles cut to
      2 000 characters (about 480 tokens) behind `summarize: `; at most 64 new tokens; temperature 1; 1 024 test
      articles.
    Data: the set's page holds a script, which newer versions of `datasets` do not run. Then take the parquet
      files of its branch refs/convert/parquet: --instead=hf:EdinburghNLP/xsum:train=FILE.parquet, and :test.
    """

    def articles(split: str, **more: str) -> Place:
        templates = {"prompt": "summarize: {document:.2000}", "completion": "{summary}"}
        return _recast(f"{XSUM}:{split}", f"data/xsum-{split}", **templates, **more)

    train = articles("train")
    sft = Step(
        "train.sft",
        "models/t5-small-xsum",
        {
            "model": T5_SMALL,
            "data": train,
            "max_steps": 15_000,
            "batch_size": 32,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "linear",
            "max_length": 640,
        },
    )
    ppo = {
        "model": sft,
        "data": train,
        "reward": "length:40:50",
        "algorithm": "ppo",
        "value_head": "own",
        "learning_rate": 5e-6,
        "max_steps": 2000,
        "batch_size": 256,
        "num_samples": 1,
        "max_new_tokens": 64,
    }
    return Experiment(
        name="xsum-t5-small-ppo",
        title="T5-small on XSum, 40 to 50 tokens, PPO",
        reference=sft,
        training=Step("train.rlhf", "", ppo),
        beta=0.1,
        strengths=GRID,
        retrained=GRID[1:],
        decoding={
            "prompts": articles("test", id="{id}"),
            "num_prompts": 1024,
            "max_new_tokens": 64,
            "reward": "length:40:50",
        },
    )


def tldr_t5_large_pg() -> Experiment:
    """Fig. 3 and 6: T5-Large on Reddit TL;DR, policy gradient (Eq. 13) on a T5-Large reward model, β = 0.1.

    Hardware: one accelerator of 80 GB, or a slice such as v5e:2x4 (rows and parameters are split by themselves).
      Eight models are trained: SFT, reward model, policy gradient at six β.
    Memory: policy of 738 M parameters at 16 bytes 11.8 GB, reference and reward model 3.0 GB each, the rest
      activations; computed, not compiled.
    Expected: at λ = 0, 0.5, 2/3, 1, 2, 5, 10 win rate against SFT, retrained .479 .795 .850 .891 .949 .962 .940,
      DeRa .489 .801 .844 .893 .952 .948 .755; against λ = 1, DeRa .097 .271 .350 .477 .692 .654 .251; pairwise
      accuracy, retrained .527 .542 .547 .561 .580 .590 .585, DeRa .527 .540 .550 .561 .589 .609 .622. So the
      best λ is above 1: the base model is over-regularized.
    The paper's: models, β, strengths, 1 000 test queries, a language model as judge.
    Ours: all of SFT (one epoch, batches of 64, 1e-4) and reward model (from the SFT model, one epoch, 64 pairs,
      3e-5); 2 000 steps of 128 completions at 1e-5; at most 64 new tokens; temperature 1; the first 2 000
      pairs of the validation split, most of Reddit and some of CNN/Daily Mail, for pairwise accuracy; the judge.
    """
    sft, pairs = _tldr_sft(), _tldr_pairs("train")
    reward = Step(
        "train.reward",
        "models/t5-large-reward",
        {"model": sft, "data": pairs, "batch_size": 64, "learning_rate": 3e-5, "max_length": 640},
    )
    learned = Place(reward, kind="model:")
    policy_gradient = {
        "model": sft,
        "data": _tldr("train"),
        "reward": learned,
        "algorithm": "pg",
        "learning_rate": 1e-5,
        "max_steps": 2000,
        "batch_size": 128,
        "num_samples": 1,
        "max_new_tokens": 64,
    }
    training = Step("train.rlhf", "", policy_gradient)
    return _on_tldr("tldr-t5-large-pg", "T5-Large on TL;DR, policy gradient", training, reward=learned)


def tldr_t5_large_dpo() -> Experiment:
    """Fig. 7: T5-Large on Reddit TL;DR, DPO at β = 0.1 and at 0.1/λ.

    Hardware: one accelerator of 80 GB, or a slice such as v5e:2x4. Seven models are trained: SFT (that of
      tldr-t5-large-pg, with the same --work), DPO at six β.
    Memory: policy of 738 M parameters at 16 bytes 11.8 GB, reference 3.0 GB until its log-probabilities are
      known, the rest activations of 64 pairs; computed, not compiled.
    Expected: at λ = 0, 0.5, 2/3, 1, 2, 5, 10 win rate against SFT, retrained .502 .790 .773 .703 .169 .066 .073,
      DeRa .508 .782 .766 .715 .446 .085 .047; against λ = 1, DeRa .298 .578 .536 .492 .222 .013 .001. So the
      best λ is below 1: the base model is under-regularized.
    The paper's: β, learning rate 3e-6, 64 pairs, 20 000 steps; strengths; 1 000 test queries.
    Ours: SFT, temperature, lengths and judge as in tldr-t5-large-pg; the learning rate falls linearly.
    """
    training = Step(
        "train.dpo",
        "",
        {
            "model": _tldr_sft(),
            "data": _tldr_pairs("train"),
            "learning_rate": 3e-6,
            "batch_size": 64,
            "max_steps": 20_000,
            "lr_scheduler_type": "linear",
            "max_length": 640,
        },
    )
    return _on_tldr("tldr-t5-large-dpo", "T5-Large on TL;DR, DPO", training)


def zephyr_7b() -> Experiment:
    """Fig. 8 and 9: Zephyr-7b (β = 0.1) on MT-Bench in 4 bits, retrained at λ = 0.5, and combined weights.

    Hardware: decoding, a GPU of 16 GB or one v5e chip; training, v5p:2x2x2 (or 8 GPUs of 80 GB with --mesh); nine
      combined models take 14.5 GB of disk each, and 44 GB of memory to make (JAX_PLATFORMS=cpu does).
    Memory: in nf4 8 rows of 2 048 tokens take 14.8 GB of a v5e chip's 16: weights 8.9, caches 4.3, one prompt's
      0.5, temporaries 1.1; a step moves 4.3 times the least bytes (the compiler writes restored weights), 69 ms
      at best, 116 tokens/s. In bfloat16 on v5e:2x4 16 rows take 5.2 of 16 GB a chip and a step moves 0.997
      times the least. A DPO step of 16 pairs × 2 048 tokens, as many as the 32 × 1 024 here, takes 44 of 95 GB
      a chip on v5p:2x2x2. All compiled for TPUs that are not here:
        python -m eval.plan --reference=mistral-7b --aligned=mistral-7b --quantize=nf4 --topology=v5e:1x1
          --rows=8 --context=2048 --max-new-tokens=256 --temperature=0.7 --top-k=50 --top-p=0.95
        python -m eval.plan --reference=mistral-7b --aligned=mistral-7b --topology=v5e:2x4 --rows=16
        python -m eval.plan --reference=mistral-7b --train=dpo --gradient-checkpointing --topology=v5p:2x2x2
    Expected: GPT-4's grade at λ = 0, 0.2 … 2, logits 6.496 7.034 7.254 7.367 7.105 7.371 7.415 7.210 7.213 7.126
      7.033, weights 6.366 6.822 7.197 7.106 7.191 7.275 7.191 6.822 6.713 6.009 5.628; retrained at β = 0.2
      7.23. λ = 0 and λ = 1 are one model in both rows: the noise is about 0.1.
    The paper's: models, 4 bits, temperature 0.7, top-k 50, top-p 0.95, 256 new tokens, strengths, questions.
    Ours: nf4 (theirs: the default of bitsandbytes); λ = 0.5 is decoded too, for the retrained model. Retraining
      as the model card and the public handbook before 2024-01-10 have it: DPO on UltraFeedback, 5e-7 falling
      linearly, warm-up 0.1, 3 epochs, 32 pairs, 1 024 tokens of prompt and answer (prompts are not cut to 512),
      bfloat16; from the same SFT model that is the reference.
    """
    training = Step(
        "train.dpo",
        "",
        {
            "model": ZEPHYR_SFT,
            "data": ULTRAFEEDBACK,
            "learning_rate": 5e-7,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.1,
            "num_train_epochs": 3,
            "batch_size": 32,
            "max_length": 1024,
            "dtype": "bfloat16",
            "gradient_checkpointing": True,
        },
    )
    return Experiment(
        name="zephyr-7b",
        title="Zephyr-7b on MT-Bench",
        reference=ZEPHYR_SFT,
        training=training,
        beta=0.1,
        strengths=tuple(sorted({*GRID, 0.5})),
        retrained=(0.5,),
        combined=tuple(strength for strength in GRID if strength not in (0, 1)),
        decoding={
            "prompts": MT_BENCH,
            "num_prompts": 80,
            "max_new_tokens": 256,
            "temperature": 0.7,
            "top_k": 50,
            "top_p": 0.95,
            "quantize": "nf4",
        },
        aligned_model=ZEPHYR,
    )


def _recast(data: str, folder: str, **templates: Any) -> Place:
    """Returns the file of `data` under other names of its fields."""
    return Step("dera_jax.data.recast:recast", folder, {"data": data, **templates}) / "data.jsonl"


def _tldr(split: str, **more: str) -> Place:
    return _recast(f"{TLDR}:{split}", f"data/tldr-{split}", prompt="summarize: {prompt}", **more)


def _tldr_pairs(split: str, **more: Any) -> Place:
    templates = {"prompt": "summarize: {prompt}", "chosen": "{chosen}", "rejected": "{rejected}"}
    return _recast(f"{TLDR_PAIRS}:{split}", f"data/tldr-pairs-{split}", **templates, **more)


def _tldr_sft() -> Step:
    """Returns the supervised training on TL;DR that both of its presets start from."""
    posts = _recast(f"{TLDR}:train", "data/tldr-sft", prompt="summarize: {prompt}", completion="{completion}")
    return Step(
        "train.sft",
        "models/t5-large-tldr",
        {"model": T5_LARGE, "data": posts, "batch_size": 64, "learning_rate": 1e-4, "max_length": 640},
    )


def _on_tldr(name: str, title: str, training: Step, **rewards: Place) -> Experiment:
    return Experiment(
        name=name,
        title=title,
        reference=_tldr_sft(),
        training=training,
        beta=0.1,
        strengths=WIDE,
        retrained=WIDE[1:],
        decoding={"prompts": _tldr("test"), "num_prompts": 1000, "max_new_tokens": 64, **rewards},
        pairs=_tldr_pairs("validation", first=2000),
    )


def _win_rate(against: str, question: str) -> str:
    run = "{results}/{name}/dera-seed=0"
    return f"python -m eval.compare {run} {run} --against={against} {JUDGE} --question={question}"


_TLDR_AFTER = (
    _win_rate("0", "summary"),
    _win_rate("1", "summary"),
    "python -m eval.compare {results}/{name}/dera-seed=0 {results}/{name}/retrained-2-seed=0 --lambda=2 "
    f"--against=1 {JUDGE} --question=summary",
)
_ZEPHYR_AFTER = tuple(
    line
    for run in (
        "dera-seed=0",
        "retrained-0.5-seed=0",
        *(f"combined-{s:.4g}" for s in GRID if s not in (0, 1)),
    )
    for line in (
        f"unxz --force {{results}}/{{name}}/{run}/rows.jsonl.xz",
        f"python -m eval.score {{results}}/{{name}}/{run} {JUDGE} --question=mt-bench",
    )
)
