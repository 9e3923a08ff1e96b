"""lm-evaluation-harness run at every strength: its results, its files, and a table of tasks × strengths."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.task import Task
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from dera_jax.policies.policy import Policy
from dera_jax.scoring.harness import Realigned
from dera_jax.strengths import Strength, format_strength

PASSED = """num_fewshot limit samples log_samples system_instruction apply_chat_template fewshot_as_multiturn
gen_kwargs predict_only confirm_run_unsafe_code metadata""".split()
"""Settings that are arguments of the same name."""
SEEDS = "random_seed numpy_random_seed torch_random_seed fewshot_random_seed".split()


def load_tasks(settings: EvaluatorConfig) -> TaskManager:
    """Returns lm-eval's manager with the tasks of `settings` loaded; their requests will be built once.

    Raises:
      ValueError: tasks that there are not or that cannot be loaded.
    """
    manager = settings.process_tasks(settings.metadata)
    try:
        loaded = manager.load(settings.tasks)
    except Exception as error:  # tasks are programs over data from anywhere, and may fail in any way
        raise ValueError(f"--tasks: cannot be loaded: {type(error).__name__}: {error}") from error
    for task in loaded["tasks"].values():
        _build_once(task)
    # What is evaluated asks for them at every strength.
    manager.load = lambda tasks: loaded
    return manager


def evaluate(
    model: Realigned, settings: EvaluatorConfig, tasks: TaskManager, bootstrap_iters: int = 100_000
) -> Iterator[tuple[Strength, dict]]:
    """Yields lm-eval's results at each strength, written to `output_path` as lm-eval writes them.

    Args:
      settings: of lm-eval's command line.
      tasks: of `load_tasks`.
      bootstrap_iters: of standard errors that have no formula; 0 leaves them all out.
    """
    for number, strength in enumerate(model.lambdas):
        name, first = f"lambda_{format_strength(strength)}", number == 0
        tracker = EvaluationTracker(_strength_path(settings.output_path, name))
        results = simple_evaluate(
            model=model.at(number),
            # `model` names the folder that lm-eval writes to.
            model_args={"model": name, **{p: q.name for p, q in _roles(model.policies).items()}},
            tasks=settings.tasks,
            task_manager=tasks,
            evaluation_tracker=tracker,
            bootstrap_iters=bootstrap_iters,
            batch_size=model.rows,
            use_cache=settings.use_cache and f"{settings.use_cache}_{name}",
            check_integrity=settings.check_integrity and first,
            write_out=settings.write_out and first,
            **{option: getattr(settings, option) for option in PASSED},
            **settings.cache_requests,
            **dict(zip(SEEDS, settings.seed or [None] * len(SEEDS), strict=True)),
        )
        samples = results.pop("samples", None)
        tracker.save_results_aggregated(results, samples)
        for task in results["configs"] if samples else ():
            tracker.save_results_samples(task, samples[task])
        # It has warned of what it is asked.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        yield strength, results


def _roles(policies: Sequence[Policy]) -> dict[str, Policy]:
    """Returns the policies by what they are."""
    several = len(policies) > 2
    return {
        "reference" if not n else f"aligned_{n}" if several else "aligned": policy
        for n, policy in enumerate(policies)
    }


def _strength_path(path: str | None, name: str) -> str | None:
    """Returns where a strength's files go: lm-eval makes the folder `name` itself, unless a file is asked."""
    whole = Path(path) if path else None
    return str(whole.parent / name / whole.name) if whole and whole.suffix == ".json" else path


def _build_once(task: Task) -> None:
    """Lets a task build its requests once, so that every strength is asked the same."""
    build, built = task.build_all_requests, []

    def build_or_reset(**options) -> None:
        if not built:
            build(**options)
            built.extend(task.instances)
        task._instances = [replace(each, resps=[], filtered_resps={}) for each in built]

    task.build_all_requests = build_or_reset


def strength_table(results: Mapping[Strength, dict], width: int = 100) -> str:
    """Returns a table of tasks and their metrics × strengths, broken into several where it is wide.

    The last column has the largest standard error of its line.
    """
    first = next(iter(results.values()))
    lines = []
    for task, figures in first["results"].items():
        shown = figures.get("alias", task).strip(" -")
        for key in figures:
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr"):
                continue
            errors = [r["results"][task].get(f"{metric}_stderr,{kept}") for r in results.values()]
            errors = [error for error in errors if isinstance(error, float)]
            arrow = {True: " ↑", False: " ↓"}.get(first["higher_is_better"].get(task, {}).get(metric), "")
            lines.append(
                [
                    shown,
                    metric + ("" if kept == "none" else f" ({kept})") + arrow,
                    *(_figure(r["results"][task][key]) for r in results.values()),
                    f"{max(errors):.4f}" if errors else "",
                ]
            )
            shown = ""
    columns = list(zip(["task", "metric", *map(_strength, results), "±"], *lines, strict=True))
    blocks, names = [[]], columns[:2]
    for column in columns[2:]:
        if sum(_width(c) + 2 for c in [*names, *blocks[-1]]) + _width(column) > width and blocks[-1]:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_align(names, block) for block in blocks)


def _align(names: Sequence[Sequence[str]], figures: Sequence[Sequence[str]]) -> str:
    padded = [[c.ljust(_width(column)) for c in column] for column in names]
    padded += [[c.rjust(_width(column)) for c in column] for column in figures]
    heading, *lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    rule = "  ".join("─" * len(column[0]) for column in padded)
    return "\n".join([heading, rule, *lines])


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
    return str(value).strip()


def _strength(strength: Strength) -> str:
    return "λ = " + "+".join(f"{value:.4g}" for value in strength)
