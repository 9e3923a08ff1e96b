"""lm-evaluation-harness at any strength, against its own model `hf` on torch and against the mixture itself."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lm_eval import evaluator, tasks
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from dera_jax import load_policies, models
from dera_jax.commands import lm_eval as command
from dera_jax.policies.policy import TOY
from dera_jax.realign import strength_weights
from dera_jax.scoring import harness, harness_runs, likelihood
from tests.support.t5_models import write_tokenizer

REFERENCE, ALIGNED = TOY / "reference", TOY / "aligned"
LAMBDAS = [(0.0,), (0.5,), (1.0,), (1.7,)]
LENGTH = 64
"""Tokens that models read here, so that truncating is cheap to test."""
ROWS = 16
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. "
CHAT = """{% for m in messages %}<|{{ m.role }}|> {{ m.content }}
{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No test asks the network, and none writes outside its own folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        # Without its own ten thousand tasks, and without a look at the machine for each result.
        patch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        yield


@pytest.fixture(scope="module")
def ours():
    return harness.Realigned(load_policies(), LAMBDAS, ROWS, LENGTH)


def hf(folder, **options):
    options = {"device": "cpu", "dtype": "float32", "batch_size": 4, "max_length": LENGTH} | options
    return HFLM(str(folder), **options)


@pytest.fixture(scope="module")
def theirs():
    """lm-eval's own model of the reference and of the aligned model, at their numbers in LAMBDAS."""
    return {0: hf(REFERENCE), 2: hf(ALIGNED)}


def requests(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def assert_answers(found, expected):
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-6, atol=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected]


def greedy(model, prompt, count=8):
    """Returns a request for what `model`, ids to the next token's logits, writes by itself."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return ("", str(tokens)), prompt, tokens[len(prompt) :]


CHOICES = [
    (context, choice)
    for context in ("Lily saw a big", STORY * 4 + "Her mom said", "")
    for choice in (" dog", " cat", " red ball and ran away", ".")
]
LONG = CHOICES[4:8]
PAIRS = [*CHOICES, ("A space ", "behind"), (STORY, STORY), ("<s>One day", " a bird")]
TEXTS = [("One day.",), (STORY,), (STORY * 5,)]
GREEDY = {"until": ["."], "max_gen_toks": 16, "do_sample": False}
ASKED = [
    *[(text, GREEDY) for text in (STORY + "One day, a", STORY + "Her", STORY * 4)],
    (STORY, {"max_gen_toks": 7}),
]


def test_loglikelihoods_equal_those_of_hf(ours, theirs):
    asked = requests("loglikelihood", *PAIRS)
    for number, other in theirs.items():
        own = ours.at(number)
        assert_answers(own.loglikelihood(asked), other.loglikelihood(asked))
        written = [(pair, *own._encode_pair(*pair)) for pair in LONG]
        written.append(greedy(lambda ids, m=other.model: m(ids).logits, [1, 403, 407]))
        assert_answers(own._loglikelihood_tokens(written), other._loglikelihood_tokens(written))
        assert own._loglikelihood_tokens(written)[-1][1]


def test_a_continuation_without_tokens_of_its_own_is_hfs(ours, theirs, caplog):
    """The whole has as many tokens as its beginning: "The" as "Th"."""
    asked = requests("loglikelihood", ("Th", "e"), ("Th", "a"), ("Once upon a", " time"))
    assert ours._encode_pair("Th", "e")[1] == []
    for number, other in theirs.items():
        assert_answers(ours.at(number).loglikelihood(asked), other.loglikelihood(asked))
        assert ours.at(number).loglikelihood(asked[:1]) == [(0.0, True)]
    assert "1 of 3 continuations have no tokens of their own" in caplog.text
    assert caplog.text.count("no tokens of their own") == 1


def test_rolling_loglikelihoods_equal_those_of_hf(ours, theirs):
    asked = requests("loglikelihood_rolling", *TEXTS)
    for number, other in theirs.items():
        expected, found = other.loglikelihood_rolling(asked), ours.at(number).loglikelihood_rolling(asked)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


def test_texts_equal_those_of_hf(ours, theirs):
    asked = requests("generate_until", *ASKED)
    for number, other in theirs.items():
        assert ours.at(number).generate_until(asked) == other.generate_until(asked)


def test_strengths_between_and_beyond_are_the_normalized_mixture(ours, theirs):
    """Directly, from both models' logits on torch."""
    for number in (1, 3):
        (strength,), own = LAMBDAS[number], ours.at(number)

        def mixed(ids, strength=strength):
            logits = [theirs[n].model(ids).logits.double() for n in theirs]
            return (1 - strength) * logits[0] + strength * logits[1]

        asked = [(pair, *own._encode_pair(*pair)) for pair in LONG] + [greedy(mixed, [1, 403, 407])]
        expected = []
        for _, prompt, completion in asked:
            read = (prompt + completion)[-LENGTH - 1 :]
            with torch.no_grad():
                rows = torch.log_softmax(mixed(torch.tensor([read[:-1]]))[0], -1)
            rows, chosen = rows[-len(completion) :], torch.tensor(completion)
            logprob = rows.gather(1, chosen[:, None]).sum().item()
            expected.append((logprob, bool((rows.argmax(-1) == chosen).all())))
        assert expected[-1][1] and not expected[0][1]
        assert_answers(own._loglikelihood_tokens(asked), expected)


def test_models_are_read_once_for_all_strengths_and_completions(monkeypatch):
    read = []
    measure = likelihood.measure_candidates
    monkeypatch.setattr(
        likelihood, "measure_candidates", lambda *a: read.append(a[2].mask.any(1).sum()) or measure(*a)
    )
    model = harness.Realigned(load_policies(), LAMBDAS, ROWS, LENGTH)
    # Four answers of one token to each of three questions, one asked twice: three texts.
    questions = [STORY * 4 + start for start in ("Is it a", "Was she", "Tom")]
    asked = [(question, f" {letter}") for question in questions for letter in "aIst"]
    for number in range(len(LAMBDAS)):
        model.at(number).loglikelihood(requests("loglikelihood", *asked, asked[0]))
    assert sum(read) == 3


def test_memory_does_not_grow_by_a_mixture_for_each_strength():
    configs = tuple(replace(policy.config, num_layers=1) for policy in load_policies())
    params = tuple(map(models.param_shapes, configs))
    batch = likelihood.make_batch([[1] * 8] * 8, [[5] * 255] * 8, 8, tight=True)
    candidates = np.ones((8, 256, 1), np.int32)

    def temporary(count):
        weights = strength_weights([(0.1 * n,) for n in range(count)])
        lowered = likelihood.measure_candidates.lower(configs, params, batch, candidates, weights)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Of 20 more strengths not even one mixture is there beside the others.
    assert temporary(21) - temporary(1) < 8 * 256 * 512 * 4


def test_sampling_is_repeated_differently_and_reproducibly(ours):
    settings = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", *[(STORY, settings)] * 5)
    texts = ours.at(1).generate_until(asked)
    again = harness.Realigned(ours.policies, LAMBDAS, ROWS, LENGTH).at(1)
    assert len(set(texts)) > 1 and again.generate_until(asked) == texts


def test_encoder_decoder_equals_hf(tmp_path):
    folders = [_t5(tmp_path / name, seed) for seed, name in enumerate(("reference", "aligned"))]
    model = harness.Realigned(load_policies(*folders), [(0.0,), (1.0,)], rows=4, max_length=16)
    pairs = [("A dog", "runs"), ("A dog", "runs away from home"), (STORY * 3, "yes"), ("", "nothing")]
    asked = requests("generate_until", ("A dog", {"max_gen_toks": 6}))
    for number, folder in enumerate(folders):
        own, other = model.at(number), hf(folder, max_length=16)
        scored = requests("loglikelihood", *pairs)
        expected, found = other.loglikelihood(scored), own.loglikelihood(scored)
        np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-6, atol=1e-4)
        rolling = requests("loglikelihood_rolling", ("A dog",))
        np.testing.assert_allclose(
            own.loglikelihood_rolling(rolling), other.loglikelihood_rolling(rolling), rtol=1e-6
        )
        # It adds the prompt's length to what an encoder-decoder may write.
        assert other.generate_until(asked)[0].startswith(own.generate_until(asked)[0])


def _t5(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "t5", vocab_size=512, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_lm_eval_knows_the_model_by_its_name():
    model = get_model("dera_jax").create_from_arg_string(f"lambda=1/6,rows={ROWS},max_length={LENGTH}")
    assert (model.lambdas, model.rows, model.max_length) == (((1 / 6,),), ROWS, LENGTH)
    assert [policy.folder for policy in model.policies] == [REFERENCE, ALIGNED]


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
