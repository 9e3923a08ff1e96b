"""The order of the house: who may import whom, what loads without JAX, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dera_jax
from tests.support.house import TABLE

ROOT = Path(__file__).parents[1]

ALLOWED = {words[0]: set(words) for words in map(str.split, TABLE.strip().splitlines())}
DOORS = sorted(ROOT.glob("train/*.py")) + sorted(ROOT.glob("eval/*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BESIDE = [path for folder in ("tests", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {module_name(path): path for path in sorted((ROOT / "dera_jax").rglob("*.py"))}
LIBRARY = [name for name in MODULES if name.count(".") and not name.startswith("dera_jax.commands")]


def imports(path):
    """Returns what a file imports anywhere in it, functions included: (module, name or None)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add((whole, None) if whole in MODULES else (node.module, alias.name))
    return found


def modules_of(path):
    return {module for module, _ in imports(path)}


def test_the_table_is_in_order():
    lines = list(ALLOWED)
    for line, allowed in ALLOWED.items():
        assert allowed <= set(lines[: lines.index(line) + 1]), line
    assert {name.split(".")[1] for name in LIBRARY} == set(lines)


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_are_those_of_the_table(module):
    for imported in modules_of(MODULES[module]):
        parts = imported.split(".")
        if parts[0] == "dera_jax":
            assert len(parts) > 1 and parts[1] in ALLOWED[module.split(".")[1]], imported


def test_nothing_imports_a_command():
    for module in ["dera_jax", *LIBRARY]:
        for imported in modules_of(MODULES[module]):
            assert not imported.startswith("dera_jax.commands"), module
    for module, path in MODULES.items():
        for imported in modules_of(path):
            assert imported.split(".")[0] not in ("train", "eval", "scripts", "tests"), module


def test_common_needs_only_the_standard_library_and_what_checks_json():
    for module in LIBRARY:
        if module.startswith("dera_jax.common"):
            for imported in modules_of(MODULES[module]):
                name = imported.split(".")[0]
                assert name in {*sys.stdlib_module_names, "dera_jax", "msgspec"}, (module, imported)


def test_a_package_is_a_docstring():
    """One imports from the file that defines; only the public face and the models hand names on."""
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module not in ("dera_jax", "dera_jax.models"):
            (node,) = ast.parse(path.read_text()).body
            assert isinstance(node, ast.Expr), module


def defined(path):
    """Returns the names that a file defines, imports apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_names_are_imported_from_the_file_that_defines_them():
    for path in MODULES.values():
        for module, name in imports(path):
            if module in MODULES and name and module not in ("dera_jax", "dera_jax.models"):
                assert name in defined(MODULES[module]), (path, module, name)


def test_a_file_has_one_idea():
    """Or as many lines as one needs; a command has few ideas of its own. What tests share is in tests/support."""
    for module, path in MODULES.items():
        command = module.startswith("dera_jax.commands.") and module.count(".") == 2
        assert len(path.read_text().splitlines()) <= (200 if command else 350), module
    for path in BESIDE:
        assert len(path.read_text().splitlines()) <= 350, path
        for module, name in imports(path):
            parts = [*module.split("."), name or ""]
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), (path, module)


def test_what_another_file_imports_has_no_underscore():
    for path in MODULES.values():
        for module, name in imports(path):
            if module.split(".")[0] == "dera_jax" and name:
                assert name.startswith("__") or not name.startswith("_"), (path, module, name)


def test_the_library_prints_nothing():
    """What a user should know is a warning, or told to whoever asks; commands print it."""
    for module in LIBRARY:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            assert not isinstance(node, ast.Call) or ast.unparse(node.func) != "print", module


def test_public_names_are_where_the_face_says():
    """And as type checkers read them."""
    tree = ast.parse(MODULES["dera_jax"].read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: node.module.removeprefix("dera_jax.") for node in block.body for alias in node.names
    }
    assert told == dera_jax._PLACES
    for name in dera_jax.__all__:
        assert getattr(dera_jax, name).__name__ == name
        assert f"dera_jax.{name}" not in MODULES
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        dera_jax.generat  # noqa: B018


@pytest.mark.parametrize("door", DOORS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_doors_open_on_their_command(door):
    # What takes long to import is imported when Ctrl-C is already heard.
    assert modules_of(door) == {"dera_jax.commands.door"}
    assert f'main = door("{door.stem}")' in door.read_text()


HEAVY = ["jax", "flax", "optax", "transformers", "torch"]


def is_light(module):
    """Whether a module loads without JAX: what is read of results, what help needs."""
    package = module.split(".")[1]
    return (
        package in ("common", "strengths", "results", "analysis", "experiments", "commands")
        or module.endswith(".config")
        or (package == "rewards" and module.split(".")[2:] not in (["model"], ["reading_on"]))
    )


def test_results_are_read_and_help_is_given_without_jax():
    light = [module for module in MODULES if module.count(".") and is_light(module)]
    script = f"""
import importlib, sys
for name in {light}:
    importlib.import_module(name)
    found = set({HEAVY}) & set(sys.modules)
    assert not found, f"{{name}} imports {{found}}"
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
