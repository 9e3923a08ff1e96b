"""Changes that make sense of a file: what is right in form and wrong, or hostile, in content, by kind."""

import json

from tests.campaign.edits import Act, edited, write
from tests.campaign.hostile_code import rewards, rules
from tests.campaign.hostile_data import answers, bomb, data, lexicon, numbered, parquet, prompts
from tests.campaign.hostile_models import TEMPLATES, adapter, all_files, config, headers, index, template

SPECIAL: dict[str, dict[str, Act]] = {
    "rows": numbered("run/rows.jsonl"),
    "rows of a process": numbered("parted/rows-1.jsonl"),
    "run's manifest": {
        "command runs": edited(
            "run/manifest.json",
            lambda m: m["provenance"].update(
                command=["python", "-m", "eval.sweep", "--reward=python:subprocess:getoutput"]
            ),
        ),
        "models elsewhere": edited(
            "run/manifest.json", lambda m: m["identity"].update(models=[{"name": "/dev/zero"}] * 2)
        ),
        "three models": edited(
            "run/manifest.json", lambda m: m["identity"].update(models=m["identity"]["models"] * 2)
        ),
        "no models": edited("run/manifest.json", lambda m: m["identity"].update(models=[])),
        "one quantization": edited("run/manifest.json", lambda m: m["identity"].update(quantization=[None])),
        "thousand commands": edited("run/manifest.json", lambda m: m.update(commands=m["commands"] * 1000)),
        "extent of nothing": edited("run/manifest.json", lambda m: m.update(extent={})),
        "extent larger": edited(
            "run/manifest.json", lambda m: m["extent"].update(num_prompts=10**9, lambdas=[7.5])
        ),
        "judges": edited(
            "run/manifest.json", lambda m: m.update(judges={"hallucination": "\x1b[2J", "chat": [1]})
        ),
    },
    "config": config("aligned/config.json"),
    "judge's config": config("judge/config.json"),
    "weights": headers("aligned/model.safetensors"),
    "shard": headers("sharded/model-00001-of-00002.safetensors"),
    "adapter's weights": headers("adapter/adapter_model.safetensors"),
    "judge's weights": headers("judge/model.safetensors"),
    "adapter's config": adapter(),
    "index": {
        "up": all_files("../aligned/model.safetensors"),
        "absolute": all_files("/etc/passwd"),
        "folder": all_files("."),
        "itself": all_files("model.safetensors.index.json"),
        "missing": all_files("a\x1b[2J.safetensors"),
        "nul": all_files("a\0b"),
        "long": all_files("a" * 5000),
        "nothing": index(weight_map={}),
        "other names": index(weight_map={"x": "model-00001-of-00002.safetensors"}),
    },
    "model's template": template("aligned/chat_template.jinja"),
    "template": template("template.jinja"),
    "tokenizer's config": {
        f"template {name}": edited(
            "aligned/tokenizer_config.json", lambda c, t=text: c.update(chat_template=t)
        )
        for name, text in TEMPLATES.items()
        if name in ("loop", "product", "refuses", "syntax", "many brackets")
    }
    | {
        "templates": edited(
            "aligned/tokenizer_config.json",
            lambda c: c.update(chat_template=[{"name": "x"}, {"template": 5}]),
        ),
        "own code": edited(
            "aligned/tokenizer_config.json",
            lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        ),
        "class": edited(
            "aligned/tokenizer_config.json", lambda c: c.update(tokenizer_class="\x1b[2JEvilTokenizer")
        ),
        "class llama": edited(
            "aligned/tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer")
        ),
        "end of none": edited("aligned/tokenizer_config.json", lambda c: c.update(eos_token="<nothing>")),
        "length": edited("aligned/tokenizer_config.json", lambda c: c.update(model_max_length=1)),
    },
    "tokenizer": {
        "word of backtracking": edited(
            "aligned/tokenizer.json",
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
        ),
        "bad regex": edited(
            "aligned/tokenizer.json",
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "("},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
        ),
        "unknown model": edited("aligned/tokenizer.json", lambda t: t["model"].update(type="Evil")),
        "no words": edited("aligned/tokenizer.json", lambda t: t["model"].update(vocab={}, merges=[])),
        "words beyond": edited(
            "aligned/tokenizer.json", lambda t: t["model"]["vocab"].update({"new": 10**6})
        ),
        "decoder": edited("aligned/tokenizer.json", lambda t: t.update(decoder={"type": "Evil"})),
    },
    "generation config": {
        "ends": edited("aligned/generation_config.json", lambda g: g.update(eos_token_id=[2, 2, 10**9, -1])),
        "ends mixed": edited("aligned/generation_config.json", lambda g: g.update(eos_token_id=[2, "</s>"])),
        "many ends": edited(
            "aligned/generation_config.json", lambda g: g.update(eos_token_id=list(range(512)))
        ),
    },
    "model's manifest": {
        "beta zero": edited("aligned/manifest.json", lambda m: m.update(beta=0)),
        "beta negative": edited("aligned/manifest.json", lambda m: m.update(beta=-1)),
        "beta small": edited("aligned/manifest.json", lambda m: m.update(beta=5e-324)),
        "not finished": edited("aligned/manifest.json", lambda m: m.update(finished=False)),
    },
    "ended training": {
        "not finished": edited("aligned/manifest.json", lambda m: m.update(finished=False)),
        "without weights": lambda folder: (folder / "aligned/model.safetensors").unlink(),
        "half the weights": lambda folder: (folder / "aligned/model.safetensors").write_bytes(
            (folder / "aligned/model.safetensors").read_bytes()[:5000]
        ),
        "without config": lambda folder: (folder / "aligned/config.json").unlink(),
        "empty weights": write("aligned/model.safetensors", ""),
    },
    "prompts": prompts("prompts.jsonl"),
    "prompts, chat": prompts("chat.jsonl"),
    "prompts, txt": {
        name: write("prompts.txt", text)
        for name, text in {
            "separators": "a\u2028b\x0bc\x0cd\x85e\n",
            "one long": "word " * 50_000 + "\na\n",
            "escapes": "\x1b[2J\x00\n",
            "many": "a b\n" * 30_000,
            "one word": "a",
            "surrogate": "a\ud800b\n",
        }.items()
    },
    "prompts, gz": {
        "bomb": bomb,
        "two members": lambda folder: (folder / "prompts.jsonl.gz").write_bytes(
            (folder / "prompts.jsonl.gz").read_bytes() * 2
        ),
    },
    "prompts, parquet": {"types": parquet},
    "completions": data("completions.jsonl", "prompt", "completion"),
    "texts": data("texts.jsonl", "text"),
    "pairs": data("pairs.jsonl", "prompt", "chosen", "rejected"),
    "labels": data("kto.jsonl", "prompt", "completion"),
    "messages": prompts("messages.jsonl"),
    "transcripts": data("transcripts.jsonl", "chosen", "rejected"),
    "options": {
        name: write("config.json", json.dumps(values))
        for name, values in {
            "config in it": {"config": "config.json"},
            "help": {"help": True},
            "escape": {"\x1b[2J": 1},
            "names": {"num_prompts": 1, "num-prompts": 2},
            "dashes": {"--rows": 4},
            "nested": {"rows": {"a": 1}},
            "lists": {"rows": [[1]]},
            "out": {"out": ["a", "b"]},
            "λ": {"lambda": {"a": 1}},
            "large": {"num-samples": 10**20},
            "flag": {"dry-run": "yes"},
            "number as text": {"rows": "４"},
            "long name": {"a" * 5000: 1},
            "surrogate": {"out": "\ud800"},
            "nul": {"out": "a\0b", "prompts": "a\0b.jsonl"},
            "rule": {"rule": "mine:nothing"},
        }.items()
    },
    "lexicon": lexicon(),
    "reward's module": rewards(),
    "rule's module": rules(),
    "answer": answers(),
    "checkpoint's record": {
        "another step": lambda folder: (folder / "stopped/checkpoints/2").rename(
            folder / "stopped/checkpoints/3"
        ),
        "step beyond": lambda folder: (folder / "stopped/checkpoints/2").rename(
            folder / "stopped/checkpoints/99999"
        ),
        "huge step": lambda folder: (folder / "stopped/checkpoints/2").rename(
            folder / f"stopped/checkpoints/{'9' * 30}"
        ),
        "odd digits": lambda folder: (folder / "stopped/checkpoints/2").rename(
            folder / "stopped/checkpoints/\u0662"
        ),
        "square": lambda folder: (folder / "stopped/checkpoints/2").rename(
            folder / "stopped/checkpoints/\u00b2"
        ),
        "file for a folder": write("stopped/checkpoints/7", "x"),
        "file that is saving": write("stopped/checkpoints/3.saving", "x"),
    },
}
"""By kind, then by name."""
