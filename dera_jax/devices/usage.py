"""What a run made of its device and its memory."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

STATUS = Path("/proc/self/status")
"""What Linux tells of this process."""


@dataclass
class Usage:
    """How full the batches were.

    With completions of m tokens on average and c steps between two looks, a row that is refilled at once
    works m of about m + c/2 steps; the last rows, which nothing follows, idle while the longest goes on.
    """

    slot_steps: int = 0
    """Rows × steps that the device took."""
    row_tokens: int = 0
    """That rows drew for completions; one that several completions share counts once, one drawn anew twice."""
    tokens: int = 0
    """Of completions."""
    prompt_tokens_read: int = 0
    """Of prompts, where prefixes are cached: those that each model read, all models together."""
    prompt_tokens_cached: int = 0
    """Those that it had in caches of earlier prompts."""
    drafts: int = 0
    """Tokens that were drafted ahead and checked."""
    drafts_accepted: int = 0
    """Of them, those that were drawn."""

    @property
    def share(self) -> float:
        """Tokens that rows drew for each row and step, from 0 to 1."""
        return self.row_tokens / self.slot_steps if self.slot_steps else 0.0

    @property
    def acceptance(self) -> float:
        """Of the drafts the share that was kept, from 0 to 1."""
        return self.drafts_accepted / self.drafts if self.drafts else 0.0

    @property
    def shared(self) -> float:
        """Of the completions' tokens the share that came with another completion's, from 0 to 1."""
        return max(0.0, 1 - self.row_tokens / self.tokens) if self.tokens else 0.0


def peak_host_bytes() -> int:
    """Returns the most memory that this process has held at a time, its libraries and programs included."""
    # `getrusage` starts with the peak of the process that started this one.
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_device_bytes() -> int | None:
    """Returns the most memory that one of this process's devices has held at a time; None if none tells."""
    told = (device.memory_stats() or {} for device in jax.local_devices())
    return max((stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats), default=None)


def memory_limit() -> int | None:
    """Returns the bytes that all devices of this process have together; None if they cannot be told."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":  # all of them share the machine's
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return sum(limits) if all(limits) else None


def _prompt_tokens(usage: Usage) -> dict:
    names = ("prompt_tokens_read", "prompt_tokens_cached")
    counts = {name: getattr(usage, name) for name in names}
    return counts if any(counts.values()) else {}


def resources(usage: Usage) -> dict:
    """Returns what a manifest keeps of a run's use of slots and memory; of several processes, this one's."""
    device = peak_device_bytes()
    return {
        "slot_utilization": round(usage.share, 4),
        **({"shared_tokens": round(usage.shared, 4)} if usage.shared else {}),
        **_prompt_tokens(usage),
        **({"drafts_accepted": round(usage.acceptance, 4)} if usage.drafts else {}),
        "peak_host_bytes": peak_host_bytes(),
        **({} if device is None else {"peak_device_bytes": device}),
    }
