"""What cannot be served is one sentence in OpenAI's form, and the server goes on."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import pytest
import requests

from dera_jax import load_policies
from dera_jax.policies.policy import TOY
from dera_jax.rules.rule import linear_rule
from tests.support.servers import post, serving, wait_until

TEXT = {"prompt": "Once"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def refused(url, path, status, said, **body):
    found, told = post(url, path, **body)
    error = told["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"}), told
    assert said in error["message"] and "\n" not in error["message"], error["message"]
    # It answers the next one.
    assert post(url, "/v1/completions", prompt="Once", max_tokens=2)[0] == 200
    return error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "missing required field `prompt`"),
        ({"prompt": []}, "prompt: expected at least one, found none"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["Once", 3]}, "prompt: expected texts alone, or token ids alone"),
        ({"prompt": [10**6]}, "prompt: expected token ids from 0 to 511"),
        ({"prompt": "Once " * 300}, "do not fit the context of"),
        (TEXT | {"max_tokens": 0}, "max_tokens: expected at least 1, or `echo`, found 0"),
        (TEXT | {"max_tokens": 400}, "and 400 new ones do not fit the context of"),
        (TEXT | {"max_tokens": -1}, "max_tokens: expected `int` >= 0"),
        (TEXT | {"temperature": -1}, "temperature: expected a number"),
        (TEXT | {"temperature": "hot"}, "temperature: expected `float | null`, got `str`"),
        (TEXT | {"top_p": 2}, "top_p: expected a number"),
        (TEXT | {"n": 10**6}, "n: expected `int` <= 128"),
        (TEXT | {"seed": -1}, "seed: expected `int` >= 0"),
        (TEXT | {"seed": 10**30}, "seed: "),
        (TEXT | {"stop": ["a"] * 99}, "stop: expected at most 16 texts, found 99"),
        (TEXT | {"stop": ""}, "stop: expected texts with at least one character"),
        (TEXT | {"stop": "a" * 999}, "stop: expected at most 256 characters, found 999"),
        (TEXT | {"logprobs": 99}, "logprobs: expected `int` <= 20"),
        (TEXT | {"logit_bias": {"3": 1}}, "logit_bias: not supported by this server"),
        (TEXT | {"presence_penalty": 1}, "presence_penalty: not supported"),
        (TEXT | {"suffix": "end"}, "suffix: not supported"),
        (TEXT | {"stream": True, "echo": True}, "stream: not supported together with echo"),
        (TEXT | {"dera": {"lambda": 3}}, "dera.lambda: expected 0 to 2, found 3"),
        (TEXT | {"dera": {"lambda": -0.1}}, "dera.lambda: expected 0 to 2, found -0.1"),
        (
            TEXT | {"dera": {"lambda": "high"}},
            "dera.lambda: expected a strength such as 1.5 or 1/2, found 'high'",
        ),
        (TEXT | {"dera": {"lambda": True}}, "dera.lambda: expected a number"),
        (TEXT | {"dera": {"lambda": {"a": 1}}}, "dera.lambda: expected a number"),
        (TEXT | {"dera": {"lambda": []}}, "dera.lambda: expected a number for each of 1 aligned models"),
        (TEXT | {"dera": {"lambda": [1, 3]}}, "dera.lambda: expected 0 to 2, found 3"),
        (TEXT | {"dera": {"lambda": 2.0000000000000004}}, "expected 0 to 2, found 2.0000000000000004"),
        (TEXT | {"dera": {"lamda": 1}}, "dera: object contains unknown field `lamda`"),
        (TEXT | {"dera": {"contrast": ""}}, "contrast is empty"),
        (TEXT | {"dera": {"contrast": 3}}, "dera.contrast: expected"),
        (
            TEXT | {"dera": {"contrast": CHAT["messages"]}},
            "contrast: expected a text, as the prompt, found messages",
        ),
        ({"prompt": [5, 6], "dera": {"contrast": "Hi"}}, "expected a text as prompt, found token ids"),
        (TEXT | {"lambda": 1}, "lambda: expected it in the dera object"),
        (TEXT | {"contrast": "Hi"}, "contrast: expected it in the dera object"),
        (TEXT | {"dera": 1}, "dera: expected `object | null`, got `int`"),
        (TEXT | {"model": "toy@9"}, "dera.lambda: expected 0 to 2, found 9"),
        (TEXT | {"model": "toy@x"}, "model: expected a strength such as 1.5 or 1/2, found 'x'"),
        ({"prompt": "a\ud800b"}, ""),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_a_completion_that_cannot_be(body, said, url):
    refused(url, "/v1/completions", 400, said, **body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages: expected at least one, found none"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role: expected one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: expected a text"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: expected a text with at least one"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content: expected parts of text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "expected parts of text"),
        ({"messages": [{"role": "system", "content": "Be."}]}, "expected the last one to be the user's"),
        ({"messages": "Hi"}, "messages: expected `array`, got `str`"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools: not supported"),
        (CHAT | {"dera": {"contrast": "Hi"}}, "contrast: expected messages, as the prompt, found a text"),
        (CHAT | {"dera": {"contrast": []}}, "dera.contrast: expected at least one, found none"),
        (CHAT | {"dera": {"contrast": [{"role": "king", "content": "Hi"}]}}, "dera.contrast[0].role: expected one"),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format: not supported"),
        (CHAT | {"top_logprobs": 3}, "top_logprobs: expected logprobs with it"),
        (CHAT | {"max_tokens": 0}, "max_tokens: expected `int` >= 1"),
        (CHAT | {"dera": {"lambda": [1, 2, "a"]}}, "dera.lambda: expected a strength such as 1.5 or 1/2, found 'a'"),
        (CHAT | {"model": "toy"}, "the model 'toy' does not exist"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_chat_that_cannot_be(body, said, chat_url):
    status, told = post(chat_url, "/v1/chat/completions", **body)
    assert status == (404 if "does not exist" in said else 400) and said in told["error"]["message"]


def test_a_chat_without_a_template_is_told_what_to_do(url):
    refused(url, "/v1/chat/completions", 400, "no chat template: use /v1/completions", **CHAT)


@pytest.mark.parametrize("model", ["gpt-4", "toy-2", "toy2@1"])
def test_another_model_is_not_found(model, url):
    error = refused(url, "/v1/completions", 404, "there is toy, and toy@STRENGTH", model=model, **TEXT)
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "sent", "kind", "status", "said"),
    [
        ("/v1/completions", b"{", "application/json", 400, "the body is no JSON"),
        ("/v1/completions", b'{"prompt": NaN}', "application/json", 400, "the body is no JSON"),
        ("/v1/completions", b'{"prompt": "\xff"}', "application/json", 400, "the body is no JSON"),
        ("/v1/completions", b"[1]", "application/json", 400, "expected a JSON object"),
        ("/v1/completions", b"", "application/json", 400, "the body is no JSON"),
        ("/v1/completions", b"[" * 10**5, "application/json", 400, "the body is no JSON"),
        ("/v1/completions", b"prompt=Once", "text/plain", 400, "expected Content-Type: application/json"),
        (
            "/v1/completions",
            b'"' + b"a" * 10**7 + b'"',
            "application/json",
            413,
            "expected at most 1048576 bytes",
        ),
        ("/v1/nothing", b"{}", "application/json", 404, "there is no such route"),
        ("/health", b"{}", "application/json", 405, "this route has another method"),
        ("/v1/score", b"{}", "application/json", 400, "missing required field `completion`"),
        ("/v1/score", b'{"completion": "a"}', "application/json", 400, "expected one of prompt and messages"),
        (
            "/v1/score",
            b'{"completion": [], "prompt": "a"}',
            "application/json",
            400,
            "expected 1 to 64 texts",
        ),
        ("/v1/score", b'{"completion": "", "prompt": "a"}', "application/json", 400, "at least one token"),
        (
            "/v1/score",
            b'{"completion": "%s", "prompt": "a"}' % (b"a" * 900),
            "application/json",
            400,
            "the context of 256",
        ),
        ("/detokenize", b'{"tokens": [99999]}', "application/json", 400, "tokens: expected ids below 512"),
    ],
)
def test_bodies_and_routes(path, sent, kind, status, said, url):
    answer = requests.post(url + path, sent, headers={"Content-Type": kind}, timeout=60)
    assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text[:300]
    assert requests.get(f"{url}/health", timeout=60).status_code == 200


def test_no_answer_names_folders_of_the_server(url):
    status, found = post(url, "/v1/score", prompt="a", completion="a" * 900)
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"
    assert (
        "/" not in found["error"]["message"]
        and "assets" not in requests.get(f"{url}/v1/models", timeout=60).text
    )


def test_a_request_that_never_fits_the_queue_is_not_told_to_come_back(pair):
    with serving(pair, rows=1, queue=3) as (url, _):
        status, found = post(url, "/v1/completions", prompt=["Once", "Twice"], n=2)
        assert (
            status == 400
            and "expected at most 3 completions of one request, found 4" in found["error"]["message"]
        )


def test_machines_may_ask_for_heads_and_methods(url):
    assert (
        requests.head(url, timeout=60).status_code
        == requests.head(f"{url}/health", timeout=60).status_code
        == 200
    )
    assert requests.put(f"{url}/v1/score", timeout=60).headers["Allow"] == "POST"


def test_a_body_that_breaks_off_is_no_error_of_the_server(running):
    url, service = running
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99"
        )
        client.sendall(f"{head}\r\n\r\n{{".encode())
    refused = service.metrics.refused.labels("toy", "499")
    wait_until(lambda: refused._value.get() >= 1)
    assert 'status="500"' not in service.metrics.text().decode()


def test_a_full_queue_says_when_to_come_back(pair):
    with serving(pair, rows=1, queue=3) as (url, service), ThreadPoolExecutor(1) as at_once:
        begun, go = threading.Event(), threading.Event()
        service.engine.call(lambda: begun.set() or go.wait(60))
        assert begun.wait(60)
        first = at_once.submit(post, url, "/v1/completions", prompt="Once", n=3, max_tokens=2)
        wait_until(lambda: service.engine.load().waiting == 3)
        answer = requests.post(f"{url}/v1/completions", json={"prompt": "Once"}, timeout=60)
        go.set()
        assert answer.status_code == 429 and int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"]["message"] == "the queue of 3 is full: try again later"
        assert first.result()[0] == 200


def too_strong(logits, weights, state):
    """A rule without logits above λ = 1."""
    mixed, state = linear_rule(logits, weights, state)
    return jnp.where(weights[:, 1:] > 1, jnp.nan, mixed), state


def test_figures_that_are_not_finite_fail_one_completion_alone(pair):
    """What is decoded beside it does not hear of it."""
    with serving(pair, rule=too_strong) as (url, service), ThreadPoolExecutor(4) as at_once:
        asked = [
            at_once.submit(post, url, "/v1/completions", prompt="Once", seed=1, dera={"lambda": strength})
            for strength in (2, 1, 1.5, 0)
        ]
        found = [each.result() for each in asked]
        assert [status for status, _ in found] == [400, 200, 400, 200]
        assert "logits are not finite" in found[0][1]["error"]["message"]
        assert service.engine.load().busy == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", TEXT | {"logprobs": 1}),
        ("/v1/completions", TEXT | {"logprobs": 0, "echo": True}),
        ("/v1/score", TEXT | {"completion": " upon"}),
    ],
)
def test_figures_of_given_tokens_are_the_mixture_s_alone(path, body, pair):
    """Another rule's would be those of another law."""
    with serving(pair, rule=too_strong) as (url, _):
        status, found = post(url, path, **body)
        assert status == 400 and "not supported with this server's --rule" in found["error"]["message"]


def test_a_key_may_have_any_letters(pair):
    with serving(pair, api_key="clé", rows=1) as (url, _):
        for given, status in (("Bearer clé", 200), ("bearer clé", 200), ("clé", 401), ("Bearer cle", 401)):
            headers = {"Authorization": given.encode()}
            assert requests.get(f"{url}/v1/models", headers=headers, timeout=60).status_code == status, given


def test_ids_cannot_have_an_instruction():
    """They are no text that an instruction could stand around; answered without it they would be another prompt."""
    once = load_policies(TOY / "aligned", TOY / "aligned", aligned_instruction="Mira is happy. {prompt}")
    with serving(once) as (url, _):
        refused(url, "/v1/completions", 400, "some models have an instruction; found ids", prompt=[5, 6])
