"""The opponent in training: TRL's own trainers on torch, as fast as their settings allow on a CPU.

Float32, no gradient checkpointing, the reference's log-probabilities computed beforehand; nothing is
logged, saved or evaluated. Imported only where torch and TRL are wanted.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from dera_jax.data.examples import Example, Pair
from dera_jax.performance.bench.torch_decoding import choose_threads
from dera_jax.training.config import TrainConfig


class StepTimes(TrainerCallback):
    """When each step of a `train` ended, in seconds."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_begin(self, *_, **__):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())


class _PairTrainer(DPOTrainer):
    """DPO on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_) -> Dataset:
        return dataset


class TorchTraining:
    """One trainer with fixed data, ready to be timed again and again."""

    def __init__(
        self,
        model: Path,
        data: Sequence[Example] | Sequence[Pair],
        config: TrainConfig,
        out: Path,
        beta: float | None = None,
    ):
        """Takes a folder that `transformers` loads, and data of equal lengths, so that nothing is padded.

        Args:
          beta: KL strength of DPO on pairs; None is SFT on examples.
        """
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
        settings = {
            "output_dir": str(out),
            "per_device_train_batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "max_length": None,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        self._times = StepTimes()
        disable_progress_bar()
        with _quiet():
            if beta is None:
                kind, columns, own = SFTTrainer, _examples(data), SFTConfig(**settings)
            else:
                kind, columns = _PairTrainer, _pairs(data)
                own = DPOConfig(**settings, beta=beta, precompute_ref_log_probs=True)
            self._trainer = kind(
                model=AutoModelForCausalLM.from_pretrained(
                    model,
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                ),
                args=own,
                train_dataset=Dataset.from_dict(columns),
                processing_class=tokenizer,
                callbacks=[self._times],
            )

    def run(self, steps: int) -> float:
        """Returns the seconds of `steps` steps, without the start of `train` and its first step."""
        self._trainer.args.max_steps = steps + 1
        with _quiet():
            self._trainer.train()
        ends = self._times.ends
        if len(ends) != steps + 1:
            raise RuntimeError(f"TRL made {len(ends)} steps, not {steps + 1}")
        return ends[-1] - ends[0]

    def choose_threads(self, steps: int) -> dict:
        """Sets torch's number of threads to the fastest, and returns it with each one's seconds."""
        return choose_threads(lambda: self.run(steps))

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained; a shared embedding counts once."""
        return sum(p.numel() for p in self._trainer.model.parameters())


def _examples(examples: Sequence[Example]) -> dict[str, list]:
    return {
        "input_ids": [[*e.prompt, *e.completion] for e in examples],
        "completion_mask": [[0] * len(e.prompt) + [1] * len(e.completion) for e in examples],
    }


def _pairs(pairs: Sequence[Pair]) -> dict[str, list]:
    return {
        "prompt_ids": [list(p.prompt) for p in pairs],
        "chosen_ids": [list(p.chosen) for p in pairs],
        "rejected_ids": [list(p.rejected) for p in pairs],
    }


@contextlib.contextmanager
def _quiet():
    """Keeps notes of the libraries, which the bench's own lines would be lost among, from stderr."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
