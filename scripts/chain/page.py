"""The page of the chain, its sentences made from its numbers."""

import textwrap
from collections.abc import Sequence

HEAD = """# The exact chain

What is the gap between DeRa and retraining made of? On a model whose next word depends on the last one alone,
everything is a sum: the optimum of a reward under a KL penalty (Eq. 2), the mixture of whole responses (Eq. 5),
realigned decoding (Eq. 6), a model after n exact gradient steps. No sampling, no noise. The words of the chain are the
{words} tokens of stories260K that TinyStories uses, and the line break, counted in its paragraphs
(`counts.json.xz`); a text ends at the line break, or is cut off after {longest} words. The reward is 0 for {low} to
{high} words and −1 otherwise; {share:.1%} of the reference's texts are in that band.

    python -m scripts.chain

makes this page and its figure from the counts, in about a minute; `--text=FILE --tokenizer=DIR` counts another text.

![rewards, per-token errors, and what the gap is made of](chain.png)
"""


def write_page(found: dict) -> str:
    """Returns the page."""
    low, high = found["band"]
    head = HEAD.format(
        words=found["words"] - 1, longest=found["longest"], low=low, high=high, share=found["in_band"]
    )
    parts = [_perfect(found), _hard(found), _early(found), _soft(found)]
    return "\n".join([head, *map(_wrapped, parts), _tables(found)])


def _wrapped(text: str) -> str:
    """Returns a heading and its paragraph, in lines of 120."""
    heading, _, paragraph = text.partition("\n\n")
    return f"{heading}\n\n{textwrap.fill(paragraph.strip(), 120)}\n"


def _of(several: Sequence[dict], **wanted) -> dict:
    return next(each for each in several if all(each[name] == value for name, value in wanted.items()))


def _at(each: dict, lambda_: float) -> dict:
    return next(s for s in each["strengths"] if s["lambda"] == lambda_)


def _perfect(found: dict) -> str:
    half = _of(found["perfect"], beta=0.5)
    below = max((s for s in half["strengths"] if s["lambda"] < 1), key=lambda s: s["gap"]["whole"])
    above = min((s for s in half["strengths"] if s["lambda"] > 1), key=lambda s: s["gap"]["whole"])
    return (
        "## With perfect training\n\n"
        f"At β = 0.5, DeRa with the optimum as its aligned model is ahead of the optimum at β/λ by up to "
        f"{below['gap']['whole']:.3f} (λ = {below['lambda']:g}) and behind by up to {-above['gap']['whole']:.3f} "
        f"(λ = {above['lambda']:g}): the sign that the paper has. All of it is the per-token error, as whole responses "
        "(Eq. 5) of a perfect pair are the optimum.\n"
    )


def _hard(found: dict) -> str:
    hard = _of(found["perfect"], beta=0.1)
    at = {lambda_: _at(hard, lambda_) for lambda_ in (0.2, 0.4, 0.8)}
    return (
        "## A hard reward with a small β is the wrong test below 1\n\n"
        f"At β = 0.1 the optimum is saturated from λ = 0.8 on (reward {at[0.8]['optimum']['reward']:.3f}), and DeRa is "
        f"behind by {-at[0.2]['gap']['whole']:.2f} at λ = 0.2 and {-at[0.4]['gap']['whole']:.2f} at 0.4, however long "
        "one trains: interpolating needs the log-ratio of texts that the aligned model never draws.\n"
    )


def _early(found: dict) -> str:
    short = _of(found["trained"], beta=0.1, steps=8)
    below, above = _at(short, 0.4), _at(short, 2.0)
    return (
        "## Stopping early\n\n"
        f"After {short['steps']} exact steps at β = 0.1 the aligned model is {short['distance']:.1f} nats from its "
        f"optimum. DeRa less the model retrained with as many steps is {below['gap']['whole']:+.2f} at λ = 0.4 and "
        f"{above['gap']['whole']:+.2f} at λ = 2, of which the per-token error is {below['gap']['per_token']:+z.3f} and "
        f"{above['gap']['per_token']:+z.3f}: the gap is made by training that has not arrived, and its sign with it. "
        "Few steps are themselves a KL penalty, about 1/(number of steps × rate), whatever β is.\n"
    )


def _soft(found: dict) -> str:
    worst = {
        each["softness"]: max(abs(s["gap"]["whole"]) for s in each["strengths"] if s["lambda"] <= 1)
        for each in found["soft"]
    }
    hard, *_, soft = worst.values()
    return (
        "## A softer reward\n\n"
        f"Where the reward falls over {max(worst):g} words instead of at once, the per-token error between 0 and 1 is "
        f"at most {soft:.4f} instead of {hard:.4f} (β = 0.5).\n"
    )


def _tables(found: dict) -> str:
    parts = ["## Numbers\n"]
    for each in found["perfect"]:
        parts.append(_table(f"Perfect pair, β = {each['beta']:g}", each["strengths"]))
    for each in found["trained"]:
        title = f"{each['steps']} steps, β = {each['beta']:g}: {each['distance']:.3f} nats from the optimum"
        parts.append(_table(title, each["strengths"]))
    return "\n".join(parts)


def _table(title: str, strengths: Sequence[dict]) -> str:
    lines = [
        f"### {title}\n",
        "| λ | optimum: reward, KL | Eq. 5 | DeRa (Eq. 6) | retrained | DeRa − retrained | per-token | aligned's | "
        "retrained's |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for s in strengths:
        both = [
            f"{s[name]['reward']:z.3f}, {s[name]['kl']:.2f}"
            for name in ("optimum", "responses", "tokens", "retrained")
        ]
        gaps = [f"{s['gap'][part]:+z.3f}" for part in ("whole", "per_token", "aligned", "retrained")]
        lines.append(f"| {s['lambda']:g} | {' | '.join([*both, *gaps])} |")
    return "\n".join(lines) + "\n"
