"""From prompts to prompts with strengths of their own, with progress, and what is told of the weights."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from dera_jax.analysis.estimates import estimate
from dera_jax.analysis.tables import Column, estimate_cells, format_columns, short_names
from dera_jax.commands.options import cli, models
from dera_jax.commands.parts.sweep_plan import check_default_prompts, prompts_of
from dera_jax.strengths import Strength, format_strength

if TYPE_CHECKING:
    from dera_jax.data.prompts import Prompt


def weighed_prompts(args: Namespace, rows: int) -> tuple[list[dict], str]:
    """Returns the prompts as records, and what there is to tell of the weights."""
    from dera_jax.data.prompts import read_prompts
    from dera_jax.devices.processes import leads, together
    from dera_jax.scoring.divergence import encode_texts
    from dera_jax.scoring.weighing import greedy_weights, log_perplexities, weights

    source = prompts_of(args)
    prompts, unread = read_prompts(source, args.num_prompts, args.chat_template_kwargs)
    tell_replaced(prompts)
    mesh = models.open_mesh(args)

    def load():
        cli.announce_devices()
        policies = models.load_models(args, mesh=mesh)
        check_default_prompts(args, policies)
        return policies, *encode_texts(policies, prompts)

    policies, texts, unfit = together(load)
    if (dropped := unread | unfit).count and leads():
        print(dropped.told(source, len(texts)), file=sys.stderr)
    found = np.zeros((len(texts), len(policies)))
    quiet = {"unit": "prompt", "leave": False, "disable": None if leads() else True}
    with tqdm(total=len(texts), desc="reading", **quiet) as bar:
        for number, own in log_perplexities(policies, texts, rows):
            found[number] = own
            bar.update()
    if args.method == "greedy":
        shown = tqdm(zip(texts, found, strict=True), "mixing", len(texts), **quiet)
        own = np.stack([greedy_weights(policies, *each) for each in shown])
    else:
        own = weights(found, args.temperature)
    # The first turn of a conversation is what was read; all of it is written.
    whole = {prompt.prompt_id: prompt for prompt in prompts}
    records = [
        record(whole[text.id], tuple(weighed[1:]), log_perplexity=each)
        for text, weighed, each in zip(texts, own.tolist(), found.tolist(), strict=True)
    ]
    return records, tell_weights(found, own, [policy.name for policy in policies])


def tell_replaced(prompts: Sequence["Prompt"]) -> None:
    """Says how many prompts lose a strength that they had."""
    from dera_jax.devices.processes import leads

    if (count := sum(prompt.lambda_ is not None for prompt in prompts)) and leads():
        print(
            f"note: {count} of {len(prompts)} prompts had a `lambda` of their own, which is replaced",
            file=sys.stderr,
        )


def record(prompt: "Prompt", strength: Strength, **more) -> dict:
    """Returns a prompt as a record that has a strength of its own; `eval.sweep` reads it back."""
    asked = {"prompt": prompt.text} if prompt.messages is None else {"messages": list(prompt.messages)}
    return {
        "id": prompt.prompt_id,
        **asked,
        **({"prefix": prompt.prefix} if prompt.prefix else {}),
        **({} if prompt.contrast is None else {"contrast": prompt.contrast}),
        **{name: value for name, value in prompt.columns.items() if value is not None},
        "lambda": strength[0] if len(strength) == 1 else format_strength(strength),
        **more,
    }


def tell_weights(
    log_perplexity: Float[np.ndarray, "prompts models"], own: Float[np.ndarray, "prompts models"],
    names: Sequence[str],
) -> str:  # fmt: skip
    """Returns the table of the models: what they weigh, and how often each is the best."""
    prompts, best = range(len(own)), log_perplexity.argmin(axis=1)
    short = short_names(list(dict.fromkeys(names)))
    columns = [
        Column("model", [short[name] for name in names]),
        Column("weight", estimate_cells([estimate(column, prompts) for column in own.T])),
        Column("log perplexity", estimate_cells([estimate(column, prompts) for column in log_perplexity.T])),
        Column("best", [f"{(best == model).mean():.0%}" for model in range(len(names))]),
    ]
    return (
        f"{format_columns(columns)}\n\nmeans over {len(own)} prompts, ± is half a 95 % interval; log perplexity in "
        "nats per token;\nbest: share of the prompts that the model predicts best"
    )
