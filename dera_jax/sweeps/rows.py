"""A completion as a row."""

from dataclasses import asdict

from dera_jax.data.encoding import prompt_tokens
from dera_jax.data.prompts import prompt_text
from dera_jax.decoding.complete import draw_name, is_plain
from dera_jax.decoding.request import Completion, Searched
from dera_jax.strengths import strength_to_json
from dera_jax.sweeps.plan import SweepPlan


def make_row(plan: SweepPlan, completion: Completion) -> dict:
    """Returns the row of a completion, not yet judged."""
    prompt = completion.request.prompt.prompt
    logprobs = completion.model_logprobs.sum(axis=0, dtype="float64")
    # A value head has values, no probabilities.
    reference, *aligned = (
        float(x) for x, policy in zip(logprobs, plan.policies, strict=True) if policy.value_of is None
    )
    return {
        "prompt_id": prompt.prompt_id,
        "sample": completion.request.sample,
        "seed": plan.decode.seed,
        "turn": completion.request.turn,
        "rule": plan.rule.name,
        **({} if is_plain(plan.draw) else {"draw": draw_name(plan.draw)}),
        "lambda": strength_to_json(completion.request.lambda_),
        "beta": plan.beta,
        "prompt": prompt_text(prompt),
        **({} if prompt.contrast is None else {"contrast": prompt_text(prompt.contrasted)}),
        "completion": completion.text,
        "prompt_tokens": prompt_tokens(completion.request.prompt),
        "tokens": completion.tokens,
        "length": completion.length,
        "finish_reason": completion.finish_reason,
        "rewards": {},
        "logprob": _total(completion.logprobs),
        "reference_logprob": reference,
        "aligned_logprob": aligned[0] if len(aligned) == 1 else aligned or None,
        "sampling_logprob": _total(completion.sampling_logprobs),
        "kl_to_reference": _total(completion.kl_to_reference),
        "log_normalizer": None if completion.log_normalizers is None else _total(completion.log_normalizers),
        **({} if completion.exact is None else {"exact": asdict(completion.exact)}),
        **({} if completion.search is None else {"search": _searched(completion.search)}),
    }


def _searched(found: Searched) -> dict:
    """Returns what a row says of a search; of its trace nothing where none was kept."""
    told = asdict(found)
    if found.trace is None:
        del told["trace"]
    return told


def _total(values) -> float:
    return float(values.sum(dtype="float64"))
