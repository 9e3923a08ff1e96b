"""From completions to how they were decoded."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dera_jax.commands.options import cli, decoding, models
from dera_jax.common.shown import shown


class Given(NamedTuple):
    """Completions as the models read them."""

    policies: Sequence
    prompts: list[list[list[int]]]
    """Ids, of each completion for each model."""
    completions: list[list[int]]
    beta: float | None


def audit_completions(args: Namespace, expected: Mapping[str, float | None], command: Sequence[str]) -> bool:
    """Prints how completions were decoded; returns whether that is what is expected."""
    from dera_jax.analysis.audit import law_to_json, law_to_table, verdict_line, verdicts
    from dera_jax.analysis.decoding_law import find_law
    from dera_jax.common.json_files import write_json
    from dera_jax.common.provenance import provenance
    from dera_jax.scoring.drawn import Drawn
    from dera_jax.scoring.places import read_places

    given = _of_run(args) if _is_run(args.given) else _of_file(args)
    texts: dict[str, int] = {}
    groups = [texts.setdefault(str(prompt), len(texts)) for prompt in given.prompts]
    used = [n for n, tokens in enumerate(given.completions) if tokens]
    if not used:
        raise ValueError(
            f"{shown(args.given, 200)}: expected completions with at least one token, found none"
        )
    # Those of one prompt are drawn one apart from the other.
    by = groups if len(texts) > 1 else list(range(len(groups)))
    rows = decoding.parse_rows(args.rows, len(used))
    prompts, completions = ([each[n] for n in used] for each in (given.prompts, given.completions))
    places = read_places(given.policies, prompts, completions, [by[n] for n in used], rows)
    law = find_law(Drawn(places), args.temperature)
    print(law_to_table(law, len(used), len({groups[n] for n in used}), given.beta))
    found = verdicts(law, expected)
    if expected:
        print(f"\nexpected: {verdict_line(found, expected)}")
    if args.out:
        told = law_to_json(law, given.beta) | {
            "completions": len(used),
            "expected": dict(expected),
            "agrees": found,
        }
        write_json(args.out, told | {"provenance": provenance(list(command))})
        print(args.out)
    return False not in found.values()


def _is_run(path) -> bool:
    if not path.exists():
        raise ValueError(f"{shown(path, 200)}: no such run or file")
    return path.is_dir() or path.name.removesuffix(".gz").removesuffix(".xz") == "rows.jsonl"


def _check_pair(args: Namespace) -> None:
    _, aligned = models.model_names(args)
    if len(aligned or [1]) > 1:
        raise ValueError(f"--aligned: expected one aligned model, found {len(aligned)}")


def _of_file(args: Namespace) -> Given:
    """Returns what a file of prompts and completions holds."""
    from dera_jax.data.completions import read_completion
    from dera_jax.data.records import load_records

    if args.lambda_ is not None:
        raise ValueError("--lambda has no meaning with a file of completions")
    _check_pair(args)
    records = load_records(str(args.given), args.num_prompts, args.chat_template_kwargs)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)
    each = [read_completion(policies, record) for record in records]
    prompts = [[list(ids) for ids in prompt.tokens] for prompt, _ in each]
    return Given(policies, prompts, [tokens for _, tokens in each], policies[-1].beta)


def _of_run(args: Namespace) -> Given:
    """Returns the completions of one strength of a run."""
    from dera_jax.commands.parts.curve import load_models_of
    from dera_jax.results.manifests import read_manifest
    from dera_jax.results.reading import read_rows

    if args.num_prompts is not None:
        raise ValueError("--num-prompts has no meaning with RUN")
    _check_pair(args)
    rows = _of_one_strength(read_rows(args.given, ("prompt_id", "sample", "lambda")), args)
    for row in rows:
        _check(row, f"{shown(args.given, 200)}: prompt {shown(row['prompt_id'], 60)}")
    if args.reference or args.aligned:
        mesh = models.open_mesh(args)
        cli.announce_devices()
        policies = models.load_models(args, mesh=mesh)
    else:
        policies = load_models_of(read_manifest(args.given), args)
    prompts = [
        [list(each) for each in ids] if ids and isinstance(ids[0], list) else [list(ids)] * len(policies)
        for ids in (row["prompt_tokens"] for row in rows)
    ]
    return Given(policies, prompts, [row["tokens"] for row in rows], policies[-1].beta)


def _of_one_strength(rows: list[dict], args: Namespace) -> list[dict]:
    from dera_jax.strengths import format_strength, parse_strengths, strength_from_json

    name = shown(args.given, 200)
    if not rows:
        raise ValueError(f"{name}: no completions in it")
    there = sorted({strength_from_json(row["lambda"]) for row in rows})
    if len(there[0]) > 1:
        raise ValueError(f"{name}: expected rows of one aligned model, found {len(there[0])}")
    wanted = there if args.lambda_ is None else parse_strengths(args.lambda_, 1)
    if len(wanted) != 1 or wanted[0] not in there:
        found = shown(", ".join(map(format_strength, there)), 200)
        raise ValueError(f"--lambda: expected one strength of {name}, which has {found}")
    return [row for row in rows if strength_from_json(row["lambda"]) == wanted[0]]


def _check(row: dict, place: str) -> None:
    """Raises ValueError where a row is no plain draw of the mixture, or does not tell its tokens."""
    if "tokens" not in row or "prompt_tokens" not in row:
        raise ValueError(f"{place}: expected rows with tokens and prompt_tokens; older runs lack them")
    if "draw" in row or "search" in row or "exact" in row:
        raise ValueError(
            f"{place}: expected completions of --draw=mixture, found {shown(row.get('draw'), 60)}"
        )
    if row.get("rule", "linear") != "linear":
        raise ValueError(f"{place}: expected the rule linear, found {shown(row['rule'], 60)}")
