"""The opponent: the same mixture with `transformers` on torch, made as fast as its `generate` allows.

The aligned model generates; a logits processor runs the reference beside it, one token at a time
with a key-value cache of its own, and mixes. Imported only where torch is wanted.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer


class CachingMixture(LogitsProcessor):
    """h(λ) = (1 − λ) h_ref + λ h_aligned, the reference's cache kept from token to token.

    It remembers what it has read, so it serves a single call of `generate`.
    """

    def __init__(self, reference: torch.nn.Module, lambda_: float, mask: torch.Tensor):
        """Takes the prompts' mask, [rows, length] with 1 for real tokens, rows as `generate` repeats them."""
        self._reference = reference
        self._lambda = lambda_
        # As in `generate`: without padding no mask is needed, and attention is faster.
        self._mask = None if bool(mask.all()) else mask
        self._positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        self._cache = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._cache is not None:
            input_ids = input_ids[:, -1:]
            self._positions = self._positions[:, -1:] + 1
            if self._mask is not None:
                self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=-1)
        output = self._reference(
            input_ids=input_ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        # Rows beyond the tokenizer's words may be padded differently from model to model.
        vocab = min(output.logits.shape[-1], scores.shape[-1])
        reference, aligned = output.logits[:, -1, :vocab].to(scores), scores[:, :vocab]
        return (1.0 - self._lambda) * reference + self._lambda * aligned


class TorchPair:
    """A reference and an aligned model, ready to generate."""

    def __init__(self, reference: Path, aligned: Path, device: str = "cpu"):
        """Loads two folders in the precision of their files.

        Raises:
          ValueError: a model that is no decoder-only one.
        """
        self.device = device
        self._reference, self._aligned = (_load(folder, device) for folder in (reference, aligned))

    def generate(
        self,
        tokens: np.ndarray,
        lambda_: float,
        new_tokens: int,
        *,
        mask: np.ndarray | None = None,
        samples: int = 1,
        greedy: bool = False,
        streamer: BaseStreamer | None = None,
    ) -> np.ndarray:
        """Returns [rows · samples, new_tokens] ids, drawn at temperature 1 from the whole mixture.

        Args:
          tokens: [rows, length], left-padded.
          mask: [rows, length], true where a token is real; None is everywhere.
          samples: completions of each row.
          streamer: is told every token as it is drawn; for a single row.
        """
        mask = np.ones_like(tokens) if mask is None else mask
        input_ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        attention_mask = torch.tensor(mask, dtype=torch.long, device=self.device)
        mixture = CachingMixture(self._reference, lambda_, attention_mask.repeat_interleave(samples, dim=0))
        # `top_k` has a default of 50, and padding is only named to keep `generate` from guessing it.
        drawing = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=new_tokens,
            num_return_sequences=samples,
            pad_token_id=0,
            **drawing,
        )
        with torch.inference_mode():
            output = self._aligned.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([mixture]),
                streamer=streamer,
            )
        made = output[:, tokens.shape[1] :].cpu().numpy()
        if made.shape != (len(tokens) * samples, new_tokens):
            raise RuntimeError(f"torch made {made.shape} tokens, not {(len(tokens) * samples, new_tokens)}")
        return made

    def choose_threads(self, measured: Callable[[], float]) -> dict:
        """Sets torch's number of threads to the fastest for a run; see `choose_threads`."""
        return choose_threads(measured)


def choose_threads(measured: Callable[[], float]) -> dict:
    """Sets torch's number of threads to the fastest for a run, and returns it with each one's seconds.

    Args:
      measured: runs and returns the seconds taken.
    """
    seconds = {}
    for threads in sorted({1, 2, *_usual_threads()}):
        torch.set_num_threads(threads)
        measured()
        seconds[threads] = min(measured() for _ in range(2))
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return {"chosen": best, "seconds": {str(threads): value for threads, value in seconds.items()}}


def _load(folder: Path, device: str) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    # The folder may name an end of text or a truncation; here neither applies.
    model.generation_config = GenerationConfig()
    return model.to(device).eval()


def _usual_threads() -> set[int]:
    """Returns all processors, and half of them, which are the cores where each runs two threads."""
    processors = os.cpu_count() or 1
    return {processors, max(processors // 2, 1)}
