"""The command eval.lm_eval: against lm-evaluation-harness with its own model `hf`, mistakes, its table."""

import json

import pytest
from lm_eval import evaluator, tasks

from dera_jax.commands import lm_eval as command
from dera_jax.scoring import harness_runs
from tests.support.harnessed import (
    LAMBDAS,
    LENGTH,
    ROWS,
    offline,  # noqa: F401 (pytest looks for it here)
)

CHAT = """{% for m in messages %}<|{{ m.role }}|> {{ m.content }}
{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"""
DOCS = [
    {
        "q": f"Once upon a time, there was a {word}. One day, it went to the",
        "choices": [" park", " big tree", " sky and sang"],
        "gold": n % 3,
        "text": f"The {word} was happy. " * (1 + 4 * n),
    }
    for n, word in enumerate(["dog", "cat", "bird", "girl"])
]
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
test_split: test
fewshot_split: test
target_delimiter: ""
metadata: {version: 1}
doc_to_text: "{{q}}"
"""
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "until": """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 16}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tasks with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "chat.jinja").write_text(CHAT)
    for name, task in TASKS.items():
        text = f"task: {name}{COMMON}{task}".replace("DOCS", str(folder / "docs.jsonl"))
        (folder / f"{name}.yaml").write_text(text)
    (folder / "nodata.yaml").write_text(f"task: nodata{COMMON}{TASKS['until']}")
    return folder


def run(capsys, *words):
    try:
        code = command.main([*map(str, words)])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def options(folder):
    return [f"--include_path={folder}", f"--max-length={LENGTH}", f"--rows={ROWS}", "--lambda=0,1/2,1,1.7"]


def samples(folder, task):
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_samples(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one["prompt_hash"] == other["prompt_hash"] and one["arguments"]["gen_args_0"]["arg_0"]
        for ours, theirs in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            if isinstance(theirs, str):
                assert ours == theirs
            elif isinstance(theirs, float):
                assert float(ours) == pytest.approx(theirs, rel=1e-5, abs=1e-4)
            else:
                assert float(ours[0]) == pytest.approx(theirs[0], rel=1e-5, abs=1e-4) and ours[1] == str(
                    theirs[1]
                )


def test_command_equals_lm_eval_with_hf(folder, options, theirs, tmp_path, capsys):
    code, out, err = run(
        capsys, "--tasks", "choice", "rolling,until", "--num_fewshot=1", "--limit", 3, "--log_samples",
        f"--output_path={tmp_path}", *options,
    )  # fmt: skip
    assert code == 0, err
    manager = tasks.TaskManager(include_path=str(folder))
    for name, number in (("lambda_0", 0), ("lambda_1", 2)):
        expected = evaluator.simple_evaluate(
            theirs[number], tasks=list(TASKS), task_manager=manager, num_fewshot=1, limit=3
        )
        (path,) = (tmp_path / name).glob("results_*.json")
        found = json.loads(path.read_text())
        assert found["config"]["lambda"] == LAMBDAS[number][0] and len(found["config"]["models"]) == 2
        for task in TASKS:
            assert_same_samples(samples(tmp_path / name, task), expected["samples"][task])
            for metric, value in expected["results"][task].items():
                if isinstance(value, float):
                    assert found["results"][task][metric] == pytest.approx(value, rel=1e-5), metric
    assert {path.name for path in tmp_path.iterdir()} == {"lambda_0", "lambda_0.5", "lambda_1", "lambda_1.7"}
    assert out.count("|choice") == 4
    last = (tmp_path / "lambda_1.7").glob("results_*.json")
    bits = json.loads(next(last).read_text())["results"]["rolling"]["bits_per_byte,none"]
    (line,) = (line for line in out.split("λ = 1.7")[-1].split("\n") if "bits_per_byte" in line)
    assert line.split()[-1] == f"{bits:.4f}" and "bits_per_byte ↓" in line


def test_chats_go_through_the_template(folder, options, theirs, tmp_path, capsys):
    code, _, err = run(
        capsys, "--tasks=choice", "--num_fewshot=1", "--limit=2", "--log_samples", "--apply_chat_template",
        "--system_instruction=Be kind.", f"--chat-template={folder / 'chat.jinja'}",
        f"--output_path={tmp_path}", *options,
    )  # fmt: skip
    assert code == 0, err
    other = theirs[2]
    other.tokenizer.chat_template = CHAT
    manager = tasks.TaskManager(include_path=str(folder))
    expected = evaluator.simple_evaluate(
        other, tasks=["choice"], task_manager=manager, num_fewshot=1, limit=2, apply_chat_template=True,
        system_instruction="Be kind.", fewshot_as_multiturn=True,
    )  # fmt: skip
    found = samples(tmp_path / "lambda_1", "choice")
    assert_same_samples(found, expected["samples"]["choice"])
    prompt = found[0]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("<|system|> Be kind.\n<|user|> Once upon") and prompt.endswith("<|assistant|> ")


BAD = {
    "no tasks": ([], "expected --tasks=TASK[,TASK…]"),
    "an empty task": (["--tasks=choice,"], "expected --tasks=TASK[,TASK…]"),
    "an unknown task": (["--tasks=choice,chess"], "Tasks not found: chess"),
    "a task without data": (["--tasks=nodata"], "--tasks: cannot be loaded: "),
    "a broken strength": (["--tasks=choice", "--lambda=x"], "--lambda: expected a finite number"),
    "another name": (["--tasks=choice", "--model=hf"], "here it is --reference and --aligned"),
    "no option": (["--tasks=choice", "--num-shots=1"], "unknown option --num-shots"),
    "samples and no folder": (["--tasks=choice", "--log_samples"], "Specify --output_path"),
    "no template": (["--tasks=choice", "--apply_chat_template"], "neither model has one"),
    "two texts": (["--tasks=choice", "--reference-chat-template=none"], "lm-eval gives all models one text"),
    "no such setting": (["--tasks=until", "--gen_kwargs", "num_beams=2"], "found num_beams=2"),
    "too long a text": (["--tasks=until", "--gen_kwargs=max_gen_toks=999"], "leaves no room in a context"),
    "too long a context": (["--tasks=choice", "--max-length=9999"], "beyond the models' context of 256"),
    "too large a strength": (
        [
            "--tasks=choice",
            "--lambda=0,1,2,1e38",
            f"--rows={ROWS}",
            f"--max-length={LENGTH}",
            "--num_fewshot=1",
        ],
        "not finite at λ = 1e38",
    ),
}


@pytest.mark.parametrize("words, line", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, capsys, words, line):
    code, out, err = run(capsys, f"--include_path={folder}", *words)
    assert code == 2 and not out
    (last,) = (each for each in err.split("\n") if each.startswith("error: "))
    assert line in last


def test_without_lm_eval_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--tasks=choice")
    assert (code, err) == (2, "error: lm-evaluation-harness is not installed: pip install lm-eval==0.4.13\n")
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "pip install lm-eval==0.4.13" in out


def test_table_has_tasks_and_strengths_and_breaks_where_it_is_wide():
    def results(value):
        figures = {
            "alias": "arc",
            "acc,none": value,
            "acc_stderr,none": value / 10,
            "ppl,strict": 1e6 * value,
        }
        return {"results": {"arc": figures}, "higher_is_better": {"arc": {"acc": True, "ppl": False}}}

    strengths = {(n / 10,): results(n / 10) for n in range(1, 13)}
    table = harness_runs.strength_table(strengths, width=60)
    blocks = [block.split("\n") for block in table.split("\n\n")]
    assert len(blocks) > 1 and all(len(line) <= 60 for block in blocks for line in block)
    assert "acc ↑" in blocks[0][2] and "ppl (strict) ↓" in blocks[0][3] and "6e+05" in table
    assert table.count("λ = ") == 12 and blocks[-1][2].split()[-1] == "0.1200"
