"""Given text, scored: preference pairs at every strength, and models against each other."""

import sys
from pathlib import Path

from dera_jax.commands.options import cli, decoding, models


def score_pairs(args) -> None:
    """Prints at each strength how often the chosen completion of a pair is preferred (Eq. 14)."""
    from dera_jax.scoring import pairs
    from dera_jax.strengths import format_strength, parse_strengths

    _, aligned = models.model_names(args)
    lambdas, stop = parse_strengths(args.lambda_, len(aligned or [1])), decoding.stop_texts(args)
    loaded, unread = pairs.load_pairs(args.pairs, args.num_prompts, args.chat_template_kwargs)
    rows = decoding.parse_rows(args.rows, len(loaded))
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)
    encoded, unfit = pairs.encode_pairs(policies, loaded, stop)
    _tell(unread | unfit, args.pairs, len(encoded))
    table = pairs.pairwise_accuracy(policies, encoded, lambdas, rows)
    behind = " or ".join(["EOS", *map(repr, stop)])
    print(f"{len(encoded)} pairs, completions with {behind}; ± is half a 95 % interval over prompts\n")
    print(f"{'λ':>8}  {'accuracy (Eq. 14)':>20}  {'implicit reward':>20}")
    for strength, accuracy, implicit in table:
        print(f"{format_strength(strength):>8}  {_shown(accuracy):>20}  {_shown(implicit):>20}")
    _write(args.out, pairs.as_json(table))


def score_models(args) -> None:
    """Prints how far models lie apart on given text, or from themselves in a lower precision."""
    from dera_jax.data.prompts import read_prompts
    from dera_jax.policies.hub import split_models

    names = split_models(args.models)
    if len(names) < 2 or not all(names) or (len(names) > 2 and not args.quantize):
        expected = "two or more models" if args.quantize else "two models A,B"
        raise ValueError(f"--models: expected {expected}, found {args.models!r}")
    if not args.prompts:
        raise ValueError("--models: expected --prompts, the text on which to compare them")
    prompts, dropped = read_prompts(args.prompts, args.num_prompts, args.chat_template_kwargs)
    rows = decoding.parse_rows(args.rows, len(prompts))
    (_compare_precisions if args.quantize else _compare_models)(args, names, (prompts, dropped), rows)


def _texts(args, policies, given) -> list:
    """Returns the texts that the models can read, and tells what became of the others."""
    from dera_jax.scoring.divergence import encode_texts

    prompts, unread = given
    texts, unfit = encode_texts(policies, prompts)
    _tell(unread | unfit, args.prompts, len(texts))
    return texts


def _tell(dropped, source: str, used: int) -> None:
    if dropped.count:
        print(dropped.told(source, used), file=sys.stderr)


def _compare_models(args, names: list[str], given: tuple, rows: int) -> None:
    from dera_jax.analysis.estimates import estimate_to_json
    from dera_jax.scoring.divergence import kl_per_token

    mesh = models.open_mesh(args)
    cli.announce_devices()
    # The reference is what the divergence is measured against.
    policies = models.load_models(args, names[::-1], mesh=mesh)
    texts = _texts(args, policies, given)
    found = kl_per_token(policies, texts, rows)
    print(f"KL({names[0]} ‖ {names[1]}) = {_shown(found)} nats per token, on {len(texts)} texts")
    _write(args.out, {"kl_per_token": estimate_to_json(found), "models": names, "prompts": len(texts)})


def _compare_precisions(args, names: list[str], given: tuple, rows: int) -> None:
    """Prints what quantization costs each model and the mixture at each strength."""
    from dera_jax.analysis.estimates import estimate_to_json
    from dera_jax.scoring.precision import precision_cost
    from dera_jax.strengths import format_strength, parse_strengths, strength_to_json

    lambdas = parse_strengths(args.lambda_, len(names) - 1)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    full, lower = (models.load_models(args, names, kind, mesh) for kind in ("none", None))
    texts = _texts(args, full, given)
    found = precision_cost(full, lower, texts, lambdas, rows)
    print(f"KL({args.quantize} ‖ full) in nats per token, on {len(texts)} texts; Σ|w| is what errors of")
    print("logits are multiplied by at most; ± is half a 95 % interval over texts\n")
    print(f"{'λ':>8}  {'Σ|w|':>5}  {'KL per token':>22}  {'same first choice':>20}")
    for cost in found:
        strength = format_strength(cost.lambda_)
        print(
            f"{strength:>8}  {cost.amplification:>5.3g}  {_shown(cost.kl):>22}  {_shown(cost.same_choice):>20}"
        )
    table = [
        {
            "lambda": strength_to_json(cost.lambda_),
            "amplification": cost.amplification,
            "kl_per_token": estimate_to_json(cost.kl),
            "same_choice": estimate_to_json(cost.same_choice),
        }
        for cost in found
    ]
    _write(args.out, {"quantize": args.quantize, "models": names, "prompts": len(texts), "strengths": table})


def _shown(found) -> str:
    """Returns `mean ± half-width` of an `Estimate`, without the latter where it is not known."""
    if found is None:
        return "—"
    return f"{found.mean:.4g}" + (f" ± {found.half_width:.2g}" if found.half_width >= 0 else "")


def _write(path: Path | None, figures) -> None:
    from dera_jax.common.json_files import write_json

    if path:
        write_json(path, figures)
        print(path)
