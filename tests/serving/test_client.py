"""OpenAI's own client, unchanged, gets what `generate` gives."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from dera_jax import generate
from dera_jax.decoding import complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.scoring.score import score
from tests.support.servers import post, serving

PROMPT = "Once upon a time"
STRENGTHS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)


def client(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def text_of(url, strength=1.0, seed=7, **given):
    settings = {"model": "toy", "prompt": PROMPT, "seed": seed, "max_tokens": 24} | given
    return client(url).completions.create(**settings, extra_body={"dera": {"lambda": strength}})


def offline(pair, strength=1.0, seed=7, **given):
    settings = {"max_new_tokens": 24, "rows": 4} | given
    return generate(pair, [PROMPT], strength, seed=seed, **settings)


def test_strengths_at_once_are_the_rows_of_the_same_seeds(pair, url):
    """Figures bit for bit, too: the batch has as many rows, and draws each row as its request says."""
    with ThreadPoolExecutor(len(STRENGTHS)) as at_once:
        made = list(at_once.map(lambda strength: text_of(url, strength), STRENGTHS))
    for strength, found in zip(STRENGTHS, made, strict=True):
        (expected,) = offline(pair, strength)
        choice = found.choices[0]
        assert choice.text == expected.text
        assert choice.dera["kl"] == float(expected.kl_to_reference.sum(dtype="float64"))
        assert choice.dera["log_z"] == float(expected.log_normalizers.sum(dtype="float64"))
        assert choice.dera["lambda"] == strength and found.usage.completion_tokens == len(expected.tokens)
    assert len({found.choices[0].text for found in made}) > 2


def test_samples_are_those_of_one_seed(pair, url):
    found = text_of(url, 0.5, n=3)
    expected = offline(pair, 0.5, num_samples=3)
    assert [choice.text for choice in found.choices] == [each.text for each in expected]


@pytest.mark.parametrize(
    "given", [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.8}, {"stop": [",", "."]}]
)
def test_sampling_and_stop_texts_are_each_request_s_own(given, pair, url):
    found = text_of(url, 1.5, **given)
    expected = complete_alone(pair, 1.5, **given)
    assert found.choices[0].text == expected.text
    assert found.choices[0].finish_reason == {"eos": "stop"}.get(
        expected.finish_reason, expected.finish_reason
    )


def complete_alone(pair, strength, stop=(), **given):
    """Returns the completion of a request with a sampling of its own, in a batch of its own."""
    (usual,) = offline(pair, strength)
    config = DecodeConfig(max_new_tokens=24, seed=7, stop=tuple(stop), **given)
    request = Request(usual.request.prompt, 0, (float(strength),), config=config)
    (made,) = complete.complete(pair, [request], DecodeConfig(max_new_tokens=24), 4)
    return made


@pytest.mark.parametrize("stop", [None, ["le", ", "]])
@pytest.mark.parametrize("strength", [0, 1, 2])
def test_pieces_of_a_stream_are_the_whole_text(stop, strength, url):
    whole = text_of(url, strength, stop=stop, max_tokens=60).choices[0]
    pieces = list(
        text_of(url, strength, stop=stop, max_tokens=60, stream=True, stream_options={"include_usage": True})
    )
    *told, last = pieces
    assert "".join(piece.choices[0].text for piece in told) == whole.text
    assert told[-1].choices[0].finish_reason == whole.finish_reason
    assert told[-1].choices[0].dera["kl"] == whole.dera["kl"]
    assert not last.choices and last.usage.completion_tokens > 0


def test_a_chat_is_answered_whole_and_in_pieces(chat_url, chats):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who is Tom?"}]
    given = {"messages": messages, "seed": 3, "max_tokens": 20, "model": "chat@0.5"}
    whole = client(chat_url).chat.completions.create(**given, logprobs=True)
    (expected,) = generate(chats, [{"messages": messages}], 0.5, seed=3, max_new_tokens=20, rows=4)
    choice = whole.choices[0]
    assert choice.message.content == expected.text and whole.usage.prompt_tokens == len(
        expected.request.prompt.tokens[1]
    )
    assert np.allclose([t.logprob for t in choice.logprobs.content], expected.logprobs, rtol=1e-6)
    pieces = list(client(chat_url).chat.completions.create(**given, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text


def test_an_answer_is_continued_where_that_is_asked(chat_url, chats):
    messages = [{"role": "user", "content": "Who is Tom?"}, {"role": "assistant", "content": "Tom is"}]
    with pytest.raises(openai.BadRequestError, match="continue_final_message"):
        client(chat_url).chat.completions.create(model="chat", messages=messages)
    extra = {"continue_final_message": True, "dera": {"lambda": 1}}
    found = client(chat_url).chat.completions.create(
        model="chat", messages=messages, seed=3, max_tokens=9, extra_body=extra
    )
    asked = {"messages": messages[:1], "prefix": "Tom is"}
    (expected,) = generate(chats, [asked], 1, seed=3, max_new_tokens=9, rows=4)
    assert found.choices[0].message.content == expected.text


def test_logprobs_of_a_prompt_are_those_of_teacher_forcing(pair, url):
    found = text_of(url, 0.5, echo=True, logprobs=2, max_tokens=1, temperature=0).choices[0]
    asked = offline(pair)[0].request.prompt.tokens[0]
    whole = [*asked, *complete_alone(pair, 0.5, temperature=0).tokens[:1]]
    told = found.logprobs
    assert told.token_logprobs[0] is None and len(told.token_logprobs) == len(whole)
    (expected,) = score(pair, [{"prompt": PROMPT}], [whole[len(asked) :]], 0.5)
    assert told.token_logprobs[-1] == pytest.approx(float(expected.logprobs[0, 0]), abs=1e-4)
    # Greedy: the drawn token is the most probable one.
    assert max(told.top_logprobs[-1].values()) == pytest.approx(told.token_logprobs[-1], abs=1e-4)
    assert all(len(words) == 2 for words in told.top_logprobs[1:])


def test_offsets_are_places_in_the_text(url):
    """BOS has a token and no text."""
    found = text_of(url, 0.5, echo=True, logprobs=1, max_tokens=8).choices[0]
    told = found.logprobs
    assert found.text.startswith(PROMPT) and told.tokens[0] == "<s>"
    for token, offset in list(zip(told.tokens, told.text_offset, strict=True))[1:]:
        assert found.text[offset:].startswith(token) or token == "</s>"


def test_of_a_prompt_alone_no_figures_of_a_completion_are_told(url):
    found = text_of(url, 1, echo=True, logprobs=0, max_tokens=0)
    assert found.usage.completion_tokens == 0 and found.choices[0].text == PROMPT
    assert [found.dera[name] for name in ("kl", "log_z", "log_ratio")] == [0, 0, 0]


def test_given_texts_have_the_figures_of_score(pair, url):
    texts, strengths = [" there was", " a dog."], [0, 0.5, 1.5]
    body = {"prompt": PROMPT, "completion": texts, "dera": {"lambda": strengths}}
    status, found = post(url, "/v1/score", **body)
    assert status == 200 and found["lambda"] == strengths
    expected = score(pair, [{"id": n, "prompt": PROMPT} for n in range(2)], texts, strengths)
    for told, each in zip(found["data"], expected, strict=True):
        assert told["tokens"] == each.tokens
        for name, values in (
            ("logprobs", each.logprobs),
            ("kl", each.kl_to_reference),
            ("log_z", each.log_normalizers),
        ):
            np.testing.assert_allclose(told[name], values.sum(axis=1), atol=1e-4)


def test_two_aligned_models_take_a_strength_each(pair):
    with serving((pair[0], pair[1], pair[1]), name="two", lambda_=(0.5, 0.5)) as (url, _):
        for given in ([0.25, 0.75], "0.25+0.75", [[0.25, 0.75]]):
            status, found = post(
                url, "/v1/completions", prompt=PROMPT, seed=7, max_tokens=24, dera={"lambda": given}
            )
            assert status == 200 and found["dera"]["lambda"] == [0.25, 0.75]
        (expected,) = offline(pair, 1)
        assert found["choices"][0]["text"] == expected.text
        assert post(url, "/v1/completions", prompt="a", model="two@0.5+1", max_tokens=1)[1]["dera"][
            "lambda"
        ] == [0.5, 1]
        status, found = post(url, "/v1/completions", prompt="a", model="two@1")
        assert status == 400 and "expected a strength such as 0.5+0.5, found '1'" in found["error"]["message"]


def test_models_are_the_pair_and_its_ends(url):
    listed = {model.id: model for model in client(url).models.list()}
    assert list(listed) == ["toy", "toy@0", "toy@1"]
    assert listed["toy@0"].dera["lambda"] == [0] and listed["toy"].dera["beta"] == 0.1


def test_a_name_with_a_strength_is_that_strength(url):
    assert text_of(url, None, model="toy@1.5").choices[0].dera["lambda"] == 1.5
    # What is said in the request itself comes first.
    assert text_of(url, 0.5, model="toy@1.5").choices[0].dera["lambda"] == 0.5


def test_a_strength_for_each_turn(chat_url):
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Tom."},
        {"role": "user", "content": "Why?"},
    ]
    for count, expected in ((1, 0.25), (3, 1.5)):
        found = client(chat_url).chat.completions.create(
            model="chat", messages=turns[:count], max_tokens=4, extra_body={"dera": {"lambda": [0.25, 1.5]}}
        )
        assert found.choices[0].dera["lambda"] == expected


def test_figures_of_tokens_add_up_to_those_of_the_answer(url):
    extra = {"dera": {"lambda": 1.5, "tokens": True}}
    made = client(url).completions.create(
        model="toy", prompt=PROMPT, seed=7, max_tokens=40, extra_body=extra, stream=True
    )
    pieces = [piece.choices[0] for piece in made]
    tokens = [token for piece in pieces for token in piece.dera["tokens"]]
    assert sum(token["kl"] for token in tokens) == pytest.approx(pieces[-1].dera["kl"], rel=1e-5)
    assert sum(token["log_ratio"] for token in tokens) == pytest.approx(
        pieces[-1].dera["log_ratio"], rel=1e-4
    )
    assert "".join(token["token"] for token in tokens) == "".join(piece.text for piece in pieces)


def test_a_key_is_asked_for(pair):
    with serving(pair, api_key="right", rows=1) as (url, _):
        with pytest.raises(openai.AuthenticationError, match="expected an API key"):
            client(url, "wrong").models.list()
        assert len(client(url, "right").models.list().data) == 3


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_contrast_is_what_the_reference_reads(kind, pair, chats, url, chat_url):
    """A request with it is answered as a prompt with it is."""

    def say(text):
        return text if kind == "text" else [{"role": "user", "content": text}]

    good, bad = say("Mira visits Ida."), say("Bela is tired.")
    of, at, name, path = (
        (pair, url, "prompt", "/v1/completions")
        if kind == "text"
        else (chats, chat_url, "messages", "/v1/chat/completions")
    )
    settings = {"seed": 7, "max_tokens": 16}
    status, found = post(at, path, **{name: good}, **settings, dera={"lambda": 1.5, "contrast": bad})
    assert status == 200
    asked = {name: good, "contrast": bad}
    (expected,) = generate(of, [asked], 1.5, seed=7, max_new_tokens=16, rows=4)
    choice = found["choices"][0]
    assert (choice["text"] if kind == "text" else choice["message"]["content"]) == expected.text
    assert choice["dera"]["kl"] == float(expected.kl_to_reference.sum(dtype="float64"))
    (plain,) = generate(of, [{name: good}], 1.5, seed=7, max_new_tokens=16, rows=4)
    assert choice["dera"]["kl"] != float(plain.kl_to_reference.sum(dtype="float64"))
    assert choice["dera"]["contrast"] is True
