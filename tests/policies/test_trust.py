"""Nothing of a model, a run or a data folder is executed: where code could come in, and folders that bring some."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest

from dera_jax import load_policy
from dera_jax.data.records import load_records
from dera_jax.policies.policy import TOY
from dera_jax.rewards.registry import parse_rewards
from tests.support.processes import ROOT

TREES = ("dera_jax", "eval", "train", "scripts")

RUNS_CODE = {
    "import_module", "__import__", "spec_from_file_location", "exec_module", "load_module", "run_path", "run_module",
    "exec", "eval", "compile", "system", "popen", "Popen", "check_output", "check_call", "getoutput",
    "getstatusoutput", "startfile", "fork", "posix_spawn", "read_pickle", "deserialize_and_load", "from_pretrained",
    "load_dataset", "snapshot_download", "hf_hub_download", "load_state_dict_from_url",
}  # fmt: skip
"""Names of functions that run, import or fetch what is named."""
UNSAFE = {
    "pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml", "runpy", "code", "ctypes",
    "cffi", "imp", "subprocess", "multiprocessing", "pty", "jsonpickle",
}  # fmt: skip
"""Modules whose readers run what they read, or that start programs."""
OWN = {"re.compile", "model.to(device).eval", "job.lower().compile"}
"""Calls of the same names that do something else."""

ALLOWED = {
    # What the user names on the command line.
    "dera_jax/common/user_code.py": {"importlib.import_module", "sys.path"},  # python:module:function, --rule
    # Modules of this repository, from lists in it.
    "dera_jax/rewards/registry.py": {"importlib.import_module"},
    "dera_jax/search/scores.py": {"importlib.import_module"},
    "dera_jax/__init__.py": {"importlib.import_module"},
    "dera_jax/commands/dera.py": {"importlib.import_module"},
    "dera_jax/commands/door.py": {"importlib.import_module"},
    "scripts/reproduce/runner.py": {"importlib.import_module"},
    "scripts/get_data.py": {"sys.path"},
    # Chat templates, in a process of their own that sees Jinja and nothing of the user's.
    "dera_jax/policies/untrusted.py": {"import subprocess", "subprocess.Popen"},
    "dera_jax/policies/untrusted_worker.py": {"sys.path"},
    # A signal's handler in C, from this process.
    "dera_jax/devices/lost.py": {"import ctypes"},
    # Programs: git in this checkout, and Python with this repository's commands.
    "dera_jax/common/provenance.py": {"import subprocess"},
    "dera_jax/performance/bench/starts.py": {"import subprocess"},
    "dera_jax/performance/bench/serving.py": {"import subprocess", "subprocess.Popen"},
    "scripts/e2e.py": {"import subprocess"},
    "scripts/guided_search/runs.py": {"import subprocess"},
    "scripts/hh_rlhf.py": {"import subprocess"},
    "scripts/make_toy.py": {"import subprocess"},
    "scripts/reproduce/__main__.py": {"import subprocess", "subprocess.Popen"},
    # Libraries that could run a folder's code, and are told not to; see the tests below.
    "dera_jax/policies/tokenizers.py": {"AutoTokenizer.from_pretrained", "importlib.import_module"},
    "dera_jax/scoring/harness.py": {"AutoConfig.from_pretrained"},
    "dera_jax/performance/bench/plain_server.py": {"AutoTokenizer.from_pretrained"},
    "dera_jax/performance/bench/torch_decoding.py": {"AutoModelForCausalLM.from_pretrained"},
    "dera_jax/performance/bench/torch_training.py": {
        "AutoTokenizer.from_pretrained",
        "AutoModelForCausalLM.from_pretrained",
    },
    "dera_jax/policies/hub.py": {"snapshot_download"},
    "dera_jax/data/records.py": {"datasets.load_dataset"},
}
"""By file, all places where code could come in: a new one is to be thought about before it is written here."""


def places(tree):
    """Yields what in a module runs, imports or fetches what is named."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            if name not in OWN and (last in RUNS_CODE or last.startswith(("execv", "execl", "spawn"))):
                yield name, node
            if last == "load" and name.split(".")[0] in ("np", "numpy", "torch", "jnp", "pd"):
                yield name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from ((f"import {name}", node) for name in names if name.split(".")[0] in UNSAFE)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield "sys.path", node


FOUND = {
    str(path.relative_to(ROOT)): found
    for tree in TREES
    for path in sorted((ROOT / tree).rglob("*.py"))
    if (found := list(places(ast.parse(path.read_text()))))
}


def test_code_comes_in_at_known_places_only():
    assert {path: {name for name, _ in found} for path, found in FOUND.items()} == ALLOWED


def test_the_search_sees_what_it_is_for():
    for text in ("import pickle", "from yaml import load", "exec(x)", "importlib.import_module(x)", "np.load(x)",
                 "subprocess.run(x)\nimport subprocess", "os.execvp(a, b)", "sys.path.append(x)"):  # fmt: skip
        assert list(places(ast.parse(text))), text
    assert not list(places(ast.parse("re.compile(x)\njson.load(x)\nimport json")))


def test_libraries_are_told_to_run_no_code_of_a_folder():
    for path, found in FOUND.items():
        for name, node in found:
            given = {each.arg: ast.unparse(each.value) for each in getattr(node, "keywords", [])}
            if name.endswith("from_pretrained"):
                assert given.get("trust_remote_code") == "False", path
            if name.startswith("AutoModel"):
                assert given.get("use_safetensors") == "True", path
            if name == "snapshot_download":
                assert given["allow_patterns"] == "list(files)" and given["ignore_patterns"] == "DOUBLES"


def test_what_is_downloaded_is_data():
    from dera_jax.policies import hub, sizes

    data = (".safetensors", ".json", ".model", ".tiktoken", ".txt", ".jinja")
    assert all(name.endswith(data) for name in [*hub.FILES, *sizes.CONFIGS])
    for path in (ROOT / "dera_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hub.resolve", "resolve"):
                assert [ast.unparse(each) for each in node.args[1:]] in ([], ["CONFIGS"]), path


# A folder that brings code


class Touches:
    """What touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def hostile(tmp_path):
    """A copy of the toy model with code in every form, and the file that appears when any of it is run."""
    folder, flag = tmp_path / "model", tmp_path / "flag"
    shutil.copytree(TOY / "aligned", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    code = f"import pathlib\npathlib.Path({str(flag)!r}).touch()\nclass Mine: pass\n"
    for name in (
        "mine",
        "modeling_mine",
        "tokenization_mine",
        "__init__",
        "conftest",
        "model",
        "sitecustomize",
    ):
        (folder / f"{name}.py").write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "tokenizer.pkl", "vocab.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Touches(flag)))
    yield folder, flag
    assert not flag.exists()


def change(path, **fields):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def told(call, *args):
    """Returns the line that a call fails with, "" if it does not."""
    try:
        call(*args)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


MAPS = {
    "AutoConfig": "mine.Mine",
    "AutoModelForCausalLM": "mine.Mine",
    "AutoTokenizer": ["mine.Mine", "mine.Mine"],
}


def test_pickles_that_would_run_code_do():
    """The bait is one: who unpickles it runs it."""
    assert Touches(Path("x")).__reduce__()[0] is Path.touch


@pytest.mark.parametrize("where", [MAPS, {"AutoTokenizer": ["org/evil--mine.Mine", None]}])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
def test_a_model_that_names_code_of_its_own(hostile, name, where):
    folder, _ = hostile
    if name != "adapter_config.json":
        change(folder / name, auto_map=where)
        told(load_policy, str(folder))  # as a Llama, which it says to be too, or not at all
    else:
        (folder / "adapter").mkdir()
        change(
            folder / "adapter" / name,
            peft_type="LORA",
            r=2,
            auto_mapping={"parent_library": "mine"},
            auto_map=where,
        )
        shutil.copy(folder / "adapter_model.bin", folder / "adapter")
        assert "pickles are not read" in told(load_policy, f"{folder}+{folder / 'adapter'}")


@pytest.mark.parametrize("kind", ["os.system", "mine.Mine", "Mine", "subprocess", "__import__", "../mine"])
def test_a_tokenizer_of_a_kind_of_its_own(hostile, kind):
    folder, _ = hostile
    change(folder / "tokenizer_config.json", tokenizer_class=kind, processor_class=kind, backend=kind)
    told(load_policy, str(folder))


def test_weights_that_are_pickles_are_not_read(hostile):
    folder, _ = hostile
    (folder / "model.safetensors").unlink()
    assert "pickles are not read" in told(load_policy, str(folder))
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    assert told(load_policy, str(folder))


def test_a_reward_model_that_names_code(hostile):
    folder, _ = hostile
    change(folder / "config.json", auto_map={"AutoModelForSequenceClassification": "mine.Mine"})
    assert told(parse_rewards, f"model:{folder}")


def test_torch_and_lm_eval_read_such_a_folder_without_its_code(hostile, monkeypatch):
    """Their libraries would ask in the terminal whether to run it."""
    torch_baseline = pytest.importorskip("dera_jax.performance.bench.torch_decoding")
    from transformers import AutoConfig

    def ask(*_):
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    folder, _ = hostile
    change(folder / "config.json", auto_map=MAPS, model_type="mine")
    with pytest.raises(ValueError):
        torch_baseline._load(folder, "cpu")
    with pytest.raises(ValueError):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)  # as harness.py does


def test_a_data_set_with_a_script(tmp_path):
    pytest.importorskip("datasets")
    flag, folder = tmp_path / "flag", tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"import pathlib\npathlib.Path({str(flag)!r}).touch()\n")
    for name in (folder, folder / "set.py"):
        assert told(load_records, f"hf:{name}")
    assert not flag.exists()


def test_libraries_that_run_scripts_of_data_sets_are_refused(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    assert "expected datasets 4 or newer, found 3.6.0" in told(load_records, "hf:org/set")
