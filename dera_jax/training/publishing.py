"""A trained model on the Hugging Face Hub, with a card that says what it is and how to decode with it."""

import json
import os
import re
import shlex
from pathlib import Path

from dera_jax.common.files import write_bytes
from dera_jax.common.redaction import redactor
from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.policies import hub, manifests

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables; a token is read nowhere else."""
FILES = (
    "*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.png", "README.md",
)  # fmt: skip
"""Of the folder itself; nothing that lies in folders within."""
LEFT_OUT = ("*/*", ".*", "speed.jsonl", "samples.jsonl", "report.json")
CARD = "README.md"
MADE = "<!-- Written by dera_jax. Take this line away, and the file stays as it is. -->"


def check_target(repo: str) -> str:
    """Returns the token that a model is pushed with.

    Raises:
      ValueError: no name of a repository, or no token in the environment.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", repo) or re.search(
        r"--|\.\.", repo
    ):
        raise ValueError(f"--push-to-hub: expected USER/NAME, found {shown(repo, 200)}")
    token = next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)
    if token is None:
        raise ValueError("--push-to-hub: expected a token in the environment variable HF_TOKEN, found none")
    return token.strip()


def member(repo: str, folder: str) -> str:
    """Returns the repository of one of several models, by its folder's name.

    >>> member("me/model", "beta=0.1-seed=2")
    'me/model-beta-0.1-seed-2'
    """
    return f"{repo}-{re.sub('[^A-Za-z0-9._]+', '-', folder)}"


def push(out: Path, repo: str, model: str, *, private: bool = False) -> str:
    """Uploads the model in OUT, with a card, and returns its address.

    Args:
      repo: USER/NAME, made if it is not there.
      model: MODEL that it was trained from.

    Raises:
      ValueError: it could not be; without the token.
    """
    token = check_target(repo)
    hide = redactor(token)
    write_card(out, repo, model)
    try:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        found = api.upload_folder(
            repo_id=repo,
            folder_path=out,
            allow_patterns=list(FILES),
            ignore_patterns=list(LEFT_OUT),
            commit_message="Trained with dera_jax",
        )
    except Exception as error:  # of the network, of the server, of the library
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(
            f"{out}: the model is there, but was not pushed to {repo} ({shown(hide(lines[0]), 300)}); the same "
            "command pushes it"
        ) from None
    return str(getattr(found, "commit_url", "") or repo).partition("/commit/")[0]


def write_card(out: Path, repo: str, model: str) -> None:
    """Writes README.md of a trained model; one that is not ours stays as it is."""
    path = out / CARD
    if path.exists() and MADE not in path.read_text(encoding="utf-8", errors="replace"):
        return
    manifest = manifests.read_manifest(out)
    write_bytes(path, card(manifest, repo, model, adapter=(out / "adapter_config.json").exists()).encode())


def card(manifest: dict, repo: str, model: str, *, adapter: bool) -> str:
    """Returns a model's card.

    Args:
      manifest: of the model.
      repo: where it will be.
      model: MODEL that it was trained from.
      adapter: whether it is one, on that model.
    """
    method, beta = manifest.get("method"), manifest.get("beta")
    reference = (manifest.get("reference") or {}).get("model")
    if adapter:
        model = hub.split_adapter(model)[0]
    name = f"{_public(model)}+{repo}" if adapter else repo
    told = [
        ("base", _public(model)),
        ("method", f"{method}{_loss(manifest)}"),
        ("β (KL strength)", beta),
        ("reference", reference and _public(reference)),
        ("data", _public(str(manifest.get("data")))),
        ("reward", manifest.get("reward")),
        ("steps", manifest.get("steps")),
        ("seed", (manifest.get("train_config") or {}).get("seed")),
        ("last evaluation", _figures(manifest.get("evaluation"))),
    ]
    rows = [f"| {what} | {_cell(value)} |" for what, value in told if value not in (None, "")]
    command = (manifest.get("provenance") or {}).get("command") or []
    return "\n".join(
        [
            "---",
            *_header(model, manifest, adapter),
            "---",
            "",
            f"# {repo.partition('/')[2]}",
            "",
            MADE,
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "Made by",
            "",
            f"    {shlex.join(map(str, command))}",
            "",
            *_use(method, beta, name, reference or model),
        ]
    )


def _header(model: str, manifest: dict, adapter: bool) -> list[str]:
    """Returns the lines that the Hub reads: no more than is on the Hub."""
    base, data = _public(model), str(manifest.get("data"))
    library = "dera_jax" if manifest.get("method") == "value" else "peft" if adapter else "transformers"
    lines = [f"library_name: {library}"]
    if _on_hub(model):
        lines.append(f"base_model: {json.dumps(base.partition('@')[0])}")
    if data.startswith("hf:"):
        lines += ["datasets:", f"- {json.dumps(data.split(':')[1])}"]
    kind = "text-classification" if manifest.get("method") == "reward" else "text-generation"
    return [
        *lines,
        f"pipeline_tag: {kind}",
        "tags:",
        "- dera_jax",
        f"- {json.dumps(str(manifest.get('method')))}",
    ]


def _use(method: object, beta: object, name: str, reference: str) -> list[str]:
    if method == "reward":
        return [
            "As a reward:",
            "",
            f"    {spelled('sweep')} --reference=REFERENCE --aligned=ALIGNED --lambda=0:2:0.2 --reward=model:{name}",
            "",
        ]
    if method == "value":
        return [
            "A value head on that model, which is not here; for controlled decoding, at strengths 1/β:",
            "",
            f"    {spelled('sweep')} --reference={_public(reference)} --aligned={name} --rule=tilt --lambda=0,1,2,5",
            "",
        ]
    if beta is None:
        return [
            "As the reference of models that are aligned from here:",
            "",
            f"    {spelled('sweep')} --reference={name} --aligned=ALIGNED --lambda=0:2:0.2",
            "",
        ]
    return [
        "Decoded at any strength λ, for which it behaves like a model that was trained at β/λ "
        "([arXiv:2402.02992](https://arxiv.org/abs/2402.02992)):",
        "",
        f"    {spelled('sweep')} --reference={_public(reference)} --aligned={name} --lambda=0:2:0.2",
        "",
    ]


def _on_hub(model: str) -> bool:
    return not os.path.isdir(model) and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", model) is not None


def _public(name: str) -> str:
    """Returns a model or data as others know it: of a place on this machine the last part."""
    if _on_hub(name) or ":" in name or "/" not in name:
        return name
    return "+".join(Path(part).name for part in name.split("+"))


def _loss(manifest: dict) -> str:
    loss = (manifest.get("preference") or {}).get("loss")
    lora = manifest.get("lora")
    return (f", loss {loss}" if loss else "") + (f", LoRA of rank {lora['r']}" if lora else "")


def _figures(evaluation: dict | None) -> str:
    figures = (evaluation or {}).items()
    return ", ".join(f"{name} {value:.4g}" for name, value in figures if isinstance(value, int | float))


def _cell(value: object) -> str:
    return shown(str(value), 300).replace("|", "\\|")
