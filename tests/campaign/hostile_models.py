"""Models that are right in form and wrong, or hostile, in content."""

import numpy as np

from tests.campaign.edits import Act, edited, header, tensors, write


def _first(found: dict) -> str:
    return min(name for name in found if name != "__metadata__")


def headers(path: str) -> dict[str, Act]:
    def field(name: str, value) -> Act:
        return header(path, lambda h: h[_first(h)].update({name: value}))

    return {
        "length of header huge": lambda folder: (folder / path).write_bytes(
            b"\xff" * 7 + b"\x7f" + (folder / path).read_bytes()[8:]
        ),
        "header deep": write(path, (200_000).to_bytes(8, "little") + b"[" * 200_000),
        "shape huge": field("shape", [10**12, 10**12]),
        "shape negative": field("shape", [-1, 4]),
        "shape text": field("shape", "x"),
        "offsets beyond": field("data_offsets", [0, 10**15]),
        "offsets backwards": field("data_offsets", [8, 4]),
        "type unknown": field("dtype", "F999"),
        "type of integers": field("dtype", "I32"),
        "type list": field("dtype", ["F32"]),
        "name escape": header(path, lambda h: h.update({"\x1b[2Jx\n": h.pop(_first(h))})),
        "metadata numbers": header(path, lambda h: h.update({"__metadata__": {"a": 1}})),
        "nan": tensors(path, lambda t: t[_first(t)].fill(np.nan)),
        "infinite": tensors(path, lambda t: t[_first(t)].fill(np.inf)),
        "large": tensors(path, lambda t: t[_first(t)].fill(3e38)),
        "half": tensors(path, lambda t: t.update({n: v.astype(np.float16) for n, v in t.items()})),
        "doubles": tensors(path, lambda t: t.update({n: v.astype(np.float64) for n, v in t.items()})),
        "whole numbers": tensors(path, lambda t: t.update({n: v.astype(np.int64) for n, v in t.items()})),
        "a number less": tensors(path, lambda t: t.update({_first(t): t[_first(t)][..., :-1]})),
        "turned": tensors(path, lambda t: t.update({_first(t): t[_first(t)].T})),
        "scalar": tensors(path, lambda t: t.update({_first(t): np.float32(1).reshape(())})),
        "no rows": tensors(path, lambda t: t.update({_first(t): t[_first(t)][:0]})),
        "none": tensors(path, lambda t: t.clear()),
        "one missing": tensors(path, lambda t: t.pop(_first(t))),
        "one more": tensors(
            path, lambda t: t.update({"model.layers.99.self_attn.q_proj.weight": np.ones((4, 4), "f4")})
        ),
    }


TEMPLATES = {
    "loop": "{% for i in range(10**9) %}{% endfor %}x",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 10**10**9 }}",
    "power of power": "{% set x = 9**9**9 %}{{ x }}",
    "product": "{{ 'a' * 10**10 }}",
    "product of lists": "{% set x = [0] * 10**10 %}{{ x|length }}",
    "doubling": "{% set n = namespace(x='aa') %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "padding": "{{ '%999999999s' % 'x' }}",
    "centre": "{{ 'x'.center(10**10) }}",
    "format": "{{ '{:>9999999999}'.format('x') }}",
    "replace": "{{ ('a'*99999).replace('a', 'b'*99999) }}",
    "join": "{{ ('b'*99999).join(['a']*99999) }}",
    "indent": "{{ ('\\n'*99999)|indent(99999) }}",
    "sum": "{{ range(10**10)|sum }}",
    "batch": "{{ range(10**9)|list|length }}",
    "cycle": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "lorem": "{{ lipsum(n=9999999) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "wide": "{{ '{:,}'.format(10**4999) }}",
    "attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "filter attribute": "{{ ''|attr('__class__') }}",
    "open": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'base.html' %}",
    "division": "{{ 1/0 }}",
    "undefined": "{{ nothing.at.all }}",
    "refuses": "{{ raise_exception('\x1b[2Jno\nerror: twice') }}",
    "none": "",
    "spaces": " \n \n",
    "escape": "\x1b]0;title\x07{{ messages[0].content }}",
    "surrogate": "{{ '\\ud800' }}",
    "syntax": "{% for %}",
    "open tag": "{% if true %}",
    "many brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep if": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long": "x" * 2_000_000,
    "tokens": "</s><s></s>{{ messages[0].content }}",
    "number": "{{ messages[0].content + 1 }}",
    "unknown filter": "{{ 'a'|evil }}",
    "generation": "{% generation %}x{% endgeneration %}",
}


def template(path: str) -> dict[str, Act]:
    return {name: write(path, text) for name, text in TEMPLATES.items()}


def config(path: str) -> dict[str, Act]:
    def put(**values) -> Act:
        return edited(path, lambda c: c.update(values))

    ropes = ("linear", "dynamic", "yarn", "llama3", "longrope", "\x1b[2J")
    return {
        "million layers": put(num_hidden_layers=10**6),
        "more layers": put(num_hidden_layers=2),
        "no layers": put(num_hidden_layers=0),
        "no heads": put(num_attention_heads=0, num_key_value_heads=0),
        "more groups than heads": put(num_key_value_heads=8),
        "groups that do not divide": put(num_attention_heads=4, num_key_value_heads=3),
        "wide": put(hidden_size=2**31, intermediate_size=2**31),
        "odd": put(hidden_size=33),
        "odd heads": put(head_dim=7),
        "vocabulary huge": put(vocab_size=2**40),
        "vocabulary of one": put(vocab_size=1),
        "vocabulary less": put(vocab_size=300),
        "context of one": put(max_position_embeddings=1),
        "context huge": put(max_position_embeddings=10**15),
        "end beyond": put(eos_token_id=10**6),
        "end negative": put(eos_token_id=-5),
        "own code": put(auto_map={"AutoModelForCausalLM": "modeling.Evil"}, trust_remote_code=True),
        "other model": put(model_type="mixtral"),
        "spoken model": put(model_type="../evil"),
        "t5": put(model_type="t5", d_model=8, d_kv=4, num_heads=2, decoder_start_token_id=0),
        "gpt2": put(model_type="gpt2", n_embd=32, n_layer=1, n_head=4),
        "quantized": put(quantization_config={"quant_method": "gptq", "bits": 4}),
        "windows": put(sliding_window=-1, use_sliding_window=True),
        "window zero": put(sliding_window=0),
        "types of layers": put(layer_types=["full_attention"] * 7),
        "activation": put(hidden_act="\x1b[2Jrelu7"),
        "eps zero": put(rms_norm_eps=0.0),
        "theta zero": put(rope_parameters={"rope_theta": 0.0, "rope_type": "default"}),
        **{
            f"rope {i}": put(
                rope_scaling={"rope_type": t, "type": t}, rope_parameters={"rope_type": t, "factor": 0}
            )
            for i, t in enumerate(ropes)
        },
    }


def adapter() -> dict[str, Act]:
    path = "adapter/adapter_config.json"

    def put(**values) -> Act:
        return edited(path, lambda c: c.update(values))

    return {
        "base elsewhere": put(base_model_name_or_path="/nowhere/at/all"),
        "base itself": put(base_model_name_or_path="adapter"),
        "base up": put(base_model_name_or_path="../../../etc"),
        "rank huge": put(r=10**9),
        "rank other": put(r=3),
        "alpha zero": put(lora_alpha=0),
        "alpha huge": put(lora_alpha=1e308),
        "pattern of backtracking": put(alpha_pattern={"(([a-z._0-9])+)+!": 2}),
        "rank pattern of backtracking": put(rank_pattern={"(.*.*.*.*.*.*)*$": 2}),
        "targets of backtracking": put(target_modules="(([a-z._0-9])+)+!"),
        "pattern broken": put(alpha_pattern={"(": 1}),
        "target pattern broken": put(target_modules="("),
        "targets none": put(target_modules=[]),
        "kind": put(peft_type="PREFIX_TUNING"),
        "dora": put(use_dora=True),
        "rslora": put(use_rslora=True),
        "bias": put(bias="all"),
        "saved modules": put(modules_to_save=["lm_head"]),
        "layers": put(layers_to_transform=[99]),
        "start": put(init_lora_weights="pissa"),
        "fan": put(fan_in_fan_out=True),
        "mapping": put(auto_mapping={"base_model_class": "os.system"}),
        "task": put(task_type="\x1b[2J"),
    }


def index(**values) -> Act:
    return edited("sharded/model.safetensors.index.json", lambda i: i.update(values))


def all_files(name: str) -> Act:
    return edited(
        "sharded/model.safetensors.index.json",
        lambda i: i["weight_map"].update(dict.fromkeys(i["weight_map"], name)),
    )
