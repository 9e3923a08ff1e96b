"""What models bring runs in a process of its own: as transformers runs it, within limits, and leaves nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jinja2
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from dera_jax.data.tokens import encode_prompt
from dera_jax.policies import untrusted, untrusted_worker
from dera_jax.policies.adapter_settings import alphas
from dera_jax.policies.chat_templates import render_chat, render_chats, render_started
from dera_jax.policies.policy import TOY
from dera_jax.policies.tokenizers import load_tokenizer, read_template
from tests.support.processes import ROOT

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    # Of the model cards of HuggingFaceH4/zephyr-7b-beta, mistralai/Mistral-7B-Instruct-v0.1, and Llama 2's chat.
    "chatml": CHATML,
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "all of the language": (
        "{%- set ns = namespace(n=0, last='') %}\n"
        "  {%- for m in messages %}\n    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "    {% set ns.n = ns.n + 1 %}\n    {% set ns.last = m.content | trim | upper %}\n"
        "{{ m | tojson(indent=2) }}{% if loop.index > 2 %}{% break %}{% endif %}\n  {% endfor %}\n"
        "{% macro f(x, y='é') %}<{{ x }}{{ y }}>{% endmacro %}{{ f(ns.n) }}{{ f(ns.last, y=tools) }}\n"
        "{{ dict(a=1, b=documents) | tojson }}{{ dict.fromkeys(['x'], 2) }}{{ strftime_now('%Y') }}\n"
        "{% generation %}{{ messages[-1].thinking }}{{ messages[-1].reasoning_content }}{% endgeneration %}\n"
        "{{ messages[-1].tool_calls is defined }}{{ pad_token }}{{ '%05.1f' % 3.14159 }}{{ [1, 2] | join('-') }}"
    ),
}  # fmt: skip
USER, SYSTEM = (
    {"role": "user", "content": " Hi\nthere é 🎉 "},
    {"role": "system", "content": "Be <kind> & 'short'."},
)
ANSWER = {"role": "assistant", "content": "Yes. ", "reasoning": "Hm.", "tool_calls": None}
CHATS = [[USER], [USER, ANSWER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER]]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOY / "aligned")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", [True, False])
def test_chats_are_rendered_as_by_transformers(name, answer, tokenizer):
    """Text for text, and what a template refuses it refuses in the same words."""
    template, seen = TEMPLATES[name], set()
    for chat in CHATS:
        try:
            theirs = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=answer, tokenize=False
            )
        except jinja2.TemplateError as error:
            with pytest.raises(untrusted.Refusal) as caught:
                render_chat(tokenizer, chat, template, answer=answer)
            assert str(caught.value) == f"the chat template refuses the messages: {error}"
        else:
            assert render_chat(tokenizer, chat, template, answer=answer) == theirs
            seen.add(theirs)
    assert len(seen) >= 3


@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama 2"])
def test_started_answers_are_those_of_transformers(name, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[name])
    for content in ("Once upon", "Once upon ", " Once", "x"):
        chat = [USER, {"role": "assistant", "content": content}]
        theirs = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
        assert render_started(tokenizer, chat) == theirs


def test_the_environment_is_that_of_transformers():
    theirs, ours = (
        _compile_jinja_template("x").environment,
        untrusted_worker.compile_template("x").environment,
    )
    assert ours.globals.keys() == theirs.globals.keys() and ours.filters.keys() == theirs.filters.keys()
    assert ours.tests.keys() == theirs.tests.keys()
    for name in ("trim_blocks", "lstrip_blocks", "autoescape", "sandboxed", "keep_trailing_newline"):
        assert getattr(ours, name) == getattr(theirs, name)
    extensions = [{next(iter(e.tags), "") for e in x.extensions.values()} for x in (ours, theirs)]
    assert extensions[0] == extensions[1]


def test_one_question_for_many_chats(tokenizer):
    asked = CHATS * 40
    assert render_chats(tokenizer, asked, CHATML) == [render_chat(tokenizer, chat, CHATML) for chat in asked]


TOO_MUCH = {
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "5 s of computing"),
    "product": ("{{ 'a' * 10**10 }}", "512 MiB of memory"),
    "products": ("{{ ('a' * 10**6) * 10**6 }}", "512 MiB of memory"),
    "at run time": ("{{ ('a' * messages | length) * 10**10 }}", "512 MiB of memory"),
    "list": ("{{ [messages] * 10**10 }}", "512 MiB of memory"),
    "width": ("{{ '%99999999999d' % 1 }}", "takes more than|refuses|fails"),
    "format": ("{{ '{:>9999999999}'.format(1) }}", "512 MiB of memory"),
    "doubling": (
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "512 MiB"
    ),
    "long text": ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "writes more than 16777216 characters"),
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    "brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "blocks": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "nested too deeply"),
    "signs": ("{{ 1" + " + 1" * 20_000 + " }}", "nested too deeply"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "attribute": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
    "namespace": ("{{ namespace(__class__=1) }}", "underscore"),
    "its own words": ("{{ raise_exception('\x1b[2Jno\n\n' ~ 'x' * 10000) }}", r"\\x1b\[2Jno x"),
    "no jinja": ("{% for %}", "Expected"),
}  # fmt: skip


TOO_LONG = {
    "power": "{% set x = 9**(9**9) %}{{ x**x }}",
    "words": "{{ lipsum(n=10**7) }}",
    "many": "{% for a in range(600) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
}
"""Programs that no limit but that of time ends; each of the last is below it, and many together are not."""


@pytest.mark.parametrize("template", TOO_LONG.values(), ids=TOO_LONG)
def test_what_takes_too_long_is_ended(template, tokenizer, hurried):
    with pytest.raises(ValueError, match=r"^the chat template .* takes more than 5 s of computing$"):
        for _ in range(200):
            render_chat(tokenizer, [USER], template)
    assert render_chat(tokenizer, [USER], "{{ messages[0].role }}") == "user"


@pytest.mark.parametrize(("template", "message"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_takes_too_much_is_refused_in_one_line(template, message, tokenizer):
    with pytest.raises(ValueError, match=message) as caught:
        render_chat(tokenizer, [USER], template)
    line = str(caught.value)
    assert line.startswith("the chat template") and line.isprintable() and len(line) < 500
    assert render_chat(tokenizer, [USER], "{{ messages[0].role }}") == "user"


def test_limits_name_the_model_or_the_file(tokenizer, tmp_path, monkeypatch):
    bad = "{{ 'a' * 10**10 }}"
    monkeypatch.setattr(tokenizer, "chat_template", bad)
    with pytest.raises(
        ValueError, match=f"^the chat template of {TOY / 'aligned'} takes more than 512 MiB of memory$"
    ):
        encode_prompt(tokenizer, None, [USER])
    (tmp_path / "t.jinja").write_text("{% if 1 %}" * 5000)
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/t.jinja: the chat template is broken: nested too deeply$"
    ):
        read_template(tmp_path / "t.jinja")
    (tmp_path / "t.jinja").write_text(bad)
    with pytest.raises(
        ValueError, match=r"^the chat template given by --chat-template takes more than 512 MiB"
    ):
        encode_prompt(tokenizer, None, [USER], template=read_template(tmp_path / "t.jinja"))


def test_patterns_are_matched_as_by_peft(tmp_path):
    from peft.utils.other import get_pattern_key

    modules = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(12) for m in "qkvo"] + ["lm_head"]
    patterns = {
        "layers.1.self_attn.q_proj": 3.0,
        r".*\.1\d\..*": 5,
        "(k|v)_proj": 6.0,
        "head": 7,
        "^lm_head": 8,
        "o_proj.*x": 9,
    }
    found = alphas(tmp_path, {"alpha_pattern": patterns, "lora_alpha": 2}, modules)
    theirs = [patterns.get(get_pattern_key(patterns.keys(), module), 2) for module in modules]
    assert found == theirs and len(set(found)) == 5


def alive(pid: int) -> bool:
    """Returns whether a process is there, be it as a zombie."""
    return Path(f"/proc/{pid}").exists()


def ask() -> list:
    return untrusted.ask(template="{{ 'a' * n }}", variables=[{"n": 2}])


def test_the_process_stays_and_comes_again():
    assert ask() == ["aa"]
    first = untrusted._WORKER.process.pid
    assert ask() == ["aa"] and untrusted._WORKER.process.pid == first
    untrusted._WORKER.process.kill()
    time.sleep(0.1)
    assert ask() == ["aa"] and untrusted._WORKER.process.pid != first
    assert not alive(first)


def test_a_fork_has_its_own_process():
    script = (
        "import os\nfrom dera_jax.policies import untrusted\n"
        "def ask(): return untrusted.ask(template='{{ n }}', variables=[{'n': os.getpid()}])\n"
        "ask(); mother = untrusted._WORKER.process.pid; child = os.fork()\n"
        "assert ask() == [str(os.getpid())]\n"
        "assert (untrusted._WORKER.process.pid == mother) == bool(child)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0 and ask() == [str(os.getpid())]; print(mother)\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr and not alive(int(ended.stdout))


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)", "os._exit(0)", "1 / 0"])
def test_the_process_ends_with_ours(end):
    """However ours ends."""
    script = (
        "import os, sys\nfrom dera_jax.policies import untrusted\n"
        "untrusted.ask(template='a', variables=[{}]); print(untrusted._WORKER.process.pid, flush=True)\n"
        + end
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid, until = int(ended.stdout), time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)
