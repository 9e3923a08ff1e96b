"""Random T5 models on torch, their files, and what they and ours say of a batch."""

import copy
from functools import cache, partial
from itertools import islice

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as models_of_text

from dera_jax import models
from dera_jax.data.batches import make_batch
from scripts.toy_grammar import write_stories

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForSeq2SeqLM  # noqa: E402

VOCAB = 512
WORDS = 500
"""Of the tokenizer, at most; embeddings are often padded."""
BASE = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20, "decoder_start_token_id": 3, "layer_norm_epsilon": 1e-4,
}  # fmt: skip
V1_1 = {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}
SHAPES = {
    "v1.0": {},
    "v1.0, untied": {"tied": False},
    "v1.1": V1_1 | {"tied": False},
    "v1.1, tied": V1_1,
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tied": False},
}
"""Settings that differ from `BASE`; `tied` says whether files hold a head."""
PROMPTS, COMPLETIONS = (70, 41, 3), (40, 23, 33)
"""Lengths of the rows of a batch; most distances are beyond those that have buckets."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For models as small as these, threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(settings: dict, auto=AutoModelForSeq2SeqLM, seed: int = 0):
    """Returns a model on torch none of whose parameters has its initial value."""
    settings = BASE | settings
    tied, kind = settings.pop("tied", True), settings.pop("model_type")
    model = auto.from_config(AutoConfig.for_model(kind, **settings)).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, BASE["d_model"]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            # Logits deviate by about 1, unless they are tied and not scaled.
            scaled = getattr(model.config, "scale_decoder_outputs", False)
            one = "relative" in name or "shared" in name or ("lm_head" in name and scaled)
            width = 1 if one else value.shape[-1] ** 0.5
            value.copy_(1 + 0.3 * noise if "norm" in name else noise / width)
        # Where embedding and head are tied, a token would otherwise be followed by itself.
        last = model.get_decoder().final_layer_norm.weight
        last.copy_((last - 1) / 0.3)
    return model


@cache
def _tokenizer() -> str:
    """Returns tokenizer.json as T5 has it, with fewer words: pieces with probabilities, ▁ for a space, </s> behind."""
    tokenizer = Tokenizer(models_of_text.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=WORDS, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False,
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )  # fmt: skip
    texts = ("".join(parts) for parts in islice(write_stories(seed=0), 500))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")


def save(model, folder):
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def in_float64(model):
    """Returns the model computing in float64; its norms by themselves go through float32."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if type(module).__name__.endswith("T5LayerNorm"):
            module.forward = lambda x, m=module: (
                m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
    return exact


def random_batch(prompts=PROMPTS, completions=COMPLETIONS, seed=1):
    """Returns prompts padded on the left with completions padded on the right."""
    ids = np.random.default_rng(seed)
    return make_batch(
        *([ids.integers(VOCAB, size=n).tolist() for n in part] for part in (prompts, completions))
    )


def assert_close(ours, theirs, bound=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * max(1.0, np.std(theirs)))


def torch_logits(model, batch, start=BASE["decoder_start_token_id"]):
    count = batch.completion_mask.shape[1]
    completions = torch.tensor(batch.completions).long()
    with torch.no_grad():
        return model(
            torch.tensor(batch.tokens[:, :-count]).long(),
            attention_mask=torch.tensor(batch.mask[:, :-count]).long(),
            decoder_input_ids=torch.nn.functional.pad(completions, (1, -1), value=start),
        ).logits


@partial(jax.jit, static_argnames=("config", "count"))
def jitted_logits(config, params, tokens, mask, count):
    return models.bind(config, params).completion_logits(tokens, mask, count)


def our_logits(policy, batch):
    count = batch.completion_mask.shape[1]
    return jitted_logits(policy.config, policy.params, batch.tokens, batch.mask, count)
