"""Completions join and leave a running batch; none is lost, none mixed up, no slot stays taken."""

import contextlib
import json
import queue
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import requests

from dera_jax.decoding import pieces, prefilling
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import MixtureDraw
from dera_jax.rules.known import load_rule
from dera_jax.serving import engine
from dera_jax.serving.fair_queue import FairQueue, Full
from dera_jax.serving.jobs import Job
from dera_jax.serving.protocol import CompletionBody
from tests.support.servers import post, service_of, serving, wait_until
from tests.support.storms import KINDS, ask, check_answers, check_counters, counted


def test_clients_take_turns_and_a_full_queue_takes_nothing():
    waiting = FairQueue(4)
    waiting.add("a", [1, 2, 3])
    with pytest.raises(Full):
        waiting.add("b", [4, 5])
    waiting.add("b", [4])
    assert [waiting.take() for _ in range(len(waiting))][:2] == [1, 4]


def test_what_is_dropped_is_the_very_object():
    first, second = [1], [1]
    waiting = FairQueue(4)
    waiting.add("a", [first, second])
    assert waiting.drop(second) and not waiting.drop(second) and waiting.take() is first and len(waiting) == 0


@pytest.mark.parametrize("size", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_storm_of_requests(pair, size):
    """Random strengths, lengths and samplings; a third is cancelled, a tenth is malformed."""
    numbers = random.Random(0).sample(range(10**6), size)
    with serving(pair, rows=4, queue=10**4) as (url, service), ThreadPoolExecutor(12) as at_once:
        asked = list(at_once.map(partial(ask, url), numbers))
        wait_until(lambda: service.engine.load().busy == 0 and service.engine.load().waiting == 0)
        metrics = requests.get(f"{url}/metrics", timeout=60).text
    kinds = check_answers(pair, asked, rows=4)
    assert len(asked) == size and all(kinds[kind] > 5 for kind in KINDS)
    check_counters(metrics, kinds)


def test_a_client_that_goes_away_frees_its_slot(pair):
    with serving(pair, rows=1) as (url, service):
        body = {"prompt": "Once", "max_tokens": 200, "n": 30, "temperature": 3.0}
        for stream in (False, True):
            answers = threading.Thread(target=_leave, args=(url, body | {"stream": stream}))
            answers.start()
            wait_until(lambda: service.engine.load().busy == 1 or not answers.is_alive())  # noqa: B023
            answers.join()
            wait_until(lambda: service.engine.load().busy == service.engine.load().waiting == 0)
        assert post(url, "/v1/completions", prompt="Once", max_tokens=2)[0] == 200


def _leave(url, body):
    with contextlib.suppress(requests.exceptions.Timeout):
        requests.post(f"{url}/v1/completions", json=body, timeout=0.3, stream=True).close()


def test_looks_at_the_models_wait_for_each_other_and_for_chunks(chats, monkeypatch):
    """Between two of them lies a chunk of what is decoded; one that nobody waits for any more is left out."""
    seen, ended = [], queue.Queue()
    chunk = Batch.run_chunk
    monkeypatch.setattr(Batch, "run_chunk", lambda batch: seen.append("chunk") or chunk(batch))
    service = service_of(chats, queue=4)
    (request,) = service.reader.completions(CompletionBody(prompt=[5, 6], max_tokens=80, seed=1)).requests
    service.engine.submit([Job(request, "", ended.put)])
    asked = [service.engine.call(lambda n=n: seen.append(n)) for n in range(4)]
    with pytest.raises(Full):
        service.engine.call(lambda: seen.append("too many"))
    asked[2].cancel()
    service.engine.start()
    ended.get(timeout=120)
    service.engine.stop()
    assert seen[:6] == [0, "chunk", 1, "chunk", "chunk", 3]


def test_what_was_taken_is_finished_when_the_server_ends(pair):
    with serving(pair, rows=2) as (url, _), ThreadPoolExecutor(4) as at_once:
        asked = [
            at_once.submit(post, url, "/v1/completions", prompt="Once", max_tokens=60, seed=n)
            for n in range(4)
        ]
        wait_until(lambda: counted(requests.get(f"{url}/metrics", timeout=60).text, "prompt_tokens") > 0)
    assert [each.result()[0] for each in asked] == [200] * 4


def test_a_long_prompt_delays_others_by_one_piece_at_a_time(chats, monkeypatch):
    """While it is read, a chunk of what is decoded lies between any two of its pieces."""
    seen, ended = [], queue.Queue()
    for module in (pieces, prefilling, engine):
        monkeypatch.setattr(module, "PIECE", 32)
    read, chunk = pieces.read_piece, Batch.run_chunk
    monkeypatch.setattr(pieces, "read_piece", lambda *a, **more: seen.append("piece") or read(*a, **more))
    monkeypatch.setattr(Batch, "run_chunk", lambda batch: seen.append("chunk") or chunk(batch))
    service, ids = service_of(chats, rows=2), list(range(3, 203))
    asked = (
        CompletionBody(prompt=[5, 6], max_tokens=240, seed=1),
        CompletionBody(prompt=ids, max_tokens=4, seed=1),
    )
    for number, body in enumerate(asked):
        (request,) = service.reader.completions(body).requests
        service.engine.submit([Job(request, str(number), ended.put)])
    service.engine.start()
    made = [ended.get(timeout=120).completion for _ in asked]
    service.engine.stop()
    assert [len(completion.tokens) for completion in made] == [4, 240]
    first, last = seen.index("piece"), len(seen) - seen[::-1].index("piece")
    # Two models read each piece.
    assert re.fullmatch("(piece piece chunk )*piece piece ", " ".join([*seen[first:last], ""])), seen
    assert seen.count("piece") == 2 * -(-(len(ids) - 1 - 32) // 32)


@pytest.mark.parametrize("draft", ["ngram", "reference", "auto"])
def test_drafts_change_no_answer(pair, draft):
    """Rows of other strengths, samplings and lengths, which join and leave while others draft."""
    bodies = [
        {
            "prompt": ["Once upon a time", "Tom has a dog."][n % 2], "max_tokens": 8 + 9 * n, "seed": n,
            "temperature": (1.0, 0.7, 0.0)[n % 3], "dera": {"lambda": 0.4 * n},
        }
        for n in range(6)
    ]  # fmt: skip
    answers = []
    for name in ("none", draft):
        draw = MixtureDraw(draft=name)
        with serving(pair, rows=3, draw=draw) as (url, service), ThreadPoolExecutor(6) as at_once:
            made = list(at_once.map(lambda body: post(url, "/v1/completions", **body), bodies))
            wait_until(lambda: service.engine.load().busy == 0)
        answers.append([answer["choices"][0]["text"] for status, answer in made if status == 200])
    assert len(answers[0]) == 6 and answers[0] == answers[1]


def test_shorter_chunks_change_no_answer_and_come_sooner(pair):
    body = {"prompt": "Once upon a time", "max_tokens": 30, "seed": 4, "stream": True}
    texts = []
    for steps in (4, 16):
        with serving(pair, rows=2, steps=steps) as (url, _):
            lines = requests.post(f"{url}/v1/completions", json=body, timeout=120).text.split("\n")
        pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
        texts.append(pieces)
    assert "".join(texts[0]) == "".join(texts[1]) and len(texts[0]) > 2 * len(texts[1])


def test_a_strength_that_the_rule_cannot_take_is_one_clients_error(pair):
    with serving(pair, rule=load_rule("power").function) as (url, _), ThreadPoolExecutor(2) as at_once:
        asked = at_once.submit(post, url, "/v1/completions", prompt="Once", max_tokens=40, model="toy@0.5")
        status, found = post(url, "/v1/completions", prompt="Once", max_tokens=4, model="toy@1.5")
        assert status == 400 and "power:p=1 averages" in found["error"]["message"]
        assert asked.result()[0] == 200
