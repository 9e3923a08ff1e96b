"""The order of the house: imports point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = """
0  configs strengths spelling shown usable files folders provenance chips experiments presets redaction code_hash notes
1  hlo traffic places realign sampling measure losses slots completions text_rewards user_code user_rewards rewards
1  untrusted_worker untrusted chat_templates tokenizer_files tokenizer missing row_files
1  manifests asked results reward_hashes metrics reports objectives tune retraining tune_data
2  keys trees models.linear models.rope models.layers models.caches models.attention models.flash models.stacked
2  models.decoder_config models.decoder models.t5 models.reward models
2  trained data recast columns messages shapes prompts batches tables panels plots tune_report tune_plot calibration
2  lost sharding hosts
3  loading.hub loading.tensors loading.manifests loading.names loading.adapter_settings loading.settings
3  loading.ties loading.fields loading.ropes loading.extras
3  loading.ahead loading.families loading.weights loading.adapters
3  loading.lora sizes policies turn_ends encoding answers decode examples learned
4  stopwatch usage padding reward_models endings generate samples conversation score stored writers rollout
4  reference_logprobs
4  likelihood bounded_http chat_completions judge_cache judge_prompts judge_endpoint judges compare
5  combine checkpoints services run_log optimization training supervised packing sft following dpo reward_training
5  rlhf ppo publishing runs
5  cells sweep divergence precision pairs torch_baseline bench schedule_bench torch_training plain_script
5  train_bench aot plan harness benchmarks
"""
"""Modules of `dera_jax`; each imports only what stands above its line, or before it in its line."""

ORDER = [module for line in FLOORS.split("\n") for module in line.split()[1:]]
DOORS = sorted(ROOT.glob("train/*.py")) + sorted(ROOT.glob("eval/*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "dera_jax").rglob("*.py"))}


def imports(path):
    """Returns the modules that a file imports anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
    return found


def of_library(modules):
    return {module.removeprefix("dera_jax.") for module in modules if module.split(".")[0] == "dera_jax"}


LIBRARY = sorted(
    of_library(MODULES) - {"dera_jax", "loading"} - {m for m in of_library(MODULES) if "commands" in m}
)


def test_every_module_has_its_floor():
    assert sorted(ORDER) == LIBRARY


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_point_down(module):
    below = ORDER[: ORDER.index(module)]
    assert of_library(imports(MODULES[f"dera_jax.{module}"])) - {"dera_jax"} <= set(below)


def test_nothing_imports_a_command():
    for name, path in MODULES.items():
        if not name.startswith("dera_jax.commands"):
            for module in imports(path):
                assert not module.startswith("dera_jax.commands"), path
                assert module.split(".")[0] not in ("train", "eval", "scripts", "tests"), path


def test_the_lowest_floor_needs_only_the_standard_library_and_what_checks_json():
    (lowest,) = (line.split()[1:] for line in FLOORS.split("\n") if line.startswith("0"))
    for module in lowest:
        for imported in imports(MODULES[f"dera_jax.{module}"]):
            assert imported.split(".")[0] in {*sys.stdlib_module_names, "dera_jax", "msgspec"}, (
                module,
                imported,
            )


@pytest.mark.parametrize("door", DOORS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_doors_open_on_their_command(door):
    # What takes long to import is imported when Ctrl-C is already heard.
    assert imports(door) == {"dera_jax.commands.door"}
    assert f'main = door("{door.stem}")' in door.read_text()


PLAIN = ["configs", "strengths", "rewards", "results", "metrics", "reports", "tables", "plots", "data"]
HEAVY = ["jax", "flax", "optax", "transformers", "torch"]


def test_results_are_read_and_drawn_without_jax():
    """The package's own `__init__` imports everything, so an empty one stands in for it."""
    script = f"""
import importlib, sys, types
package = types.ModuleType("dera_jax")
package.__path__ = [{str(ROOT / "dera_jax")!r}]
sys.modules["dera_jax"] = package
for name in {PLAIN}:
    importlib.import_module("dera_jax." + name)
    found = set({HEAVY}) & set(sys.modules)
    assert not found, f"dera_jax.{{name}} imports {{found}}"
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
