"""The page of the server, in a browser, with a stub in the place of the server."""

import json
import re
from itertools import pairwise

import pytest

from tests.support.page_probes import BACKGROUNDS, FAINT, FOCUSED, NAMELESS
from tests.support.stub_server import DERA, PAGE, serve, token

pytestmark = pytest.mark.browser


@pytest.fixture
def stub():
    with serve() as server:
        yield server


@pytest.fixture
def open_page(browser, stub):
    """Opens pages; at the end, none of them may have complained or asked for anything elsewhere."""
    contexts, faults, wanted = [], [], []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: faults.extend([said.text] * (said.type in ("error", "warning"))))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: wanted.append(request.url))
        page.goto(stub.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # This one is of the browser itself, about answers that are tested.
    assert not [fault for fault in faults if not fault.startswith("Failed to load resource")]
    assert all(url.startswith((stub.url, "data:")) for url in wanted)


def expect(found):
    from playwright.sync_api import expect  # where there is no browser, the package need not be

    return expect(found)


def ask(page, text="Why?", wait=True):
    """Sends a message with Enter and waits for the end of the answers."""
    expect(page.locator(".strength").first).to_be_visible()
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
    expect(page.locator("#send" if wait else "#stop")).to_be_visible()


def see(page, selector, text):
    expect(page.locator(selector)).to_contain_text(text)


@pytest.fixture
def page(open_page):
    return open_page()


def test_an_answer_is_streamed(page, stub):
    stub.pause, stub.pieces = 0.2, [(f" {n}", [token(f" {n}")]) for n in range(10)]
    ask(page, "Count.", wait=False)
    see(page, ".answer.writing .text", "0 1 2")
    assert "9" not in page.locator(".text").inner_text()
    see(page, ".text", "8 9")
    for fact in "10 tokens", "KL 12.30 nats", "log-ratio 3.40", "finish: stop", "tokens/s", "first token 0.":
        see(page, ".stats", fact)
    (body,) = stub.bodies
    assert stub.paths == ["/v1/chat/completions"] and body["messages"] == [
        {"role": "user", "content": "Count."}
    ]
    assert body["stream"] and body["dera"] == {"lambda": 1, "tokens": True}
    see(page, "#announcer", "Answer at strength 1:  0 1 2 3 4 5 6 7 8 9")
    assert page.locator("#prompt").input_value() == ""


def test_the_slider_sets_the_strength(page, stub):
    see(page, ".strength:visible", "the aligned model")
    page.get_by_role("slider").fill("1.5")
    see(page, ".strength:visible", "behaves like a model trained at β = 0.0667")
    ask(page)
    page.get_by_role("spinbutton").fill("0.37")
    ask(page)
    page.get_by_role("slider").fill("0")
    see(page, ".strength:visible", "the reference model")
    ask(page)
    assert [body["dera"]["lambda"] for body in stub.bodies] == [1.5, 0.37, 0]
    page.get_by_role("spinbutton").fill("7")
    page.locator("#prompt").press("Enter")
    assert len(stub.bodies) == 3


def test_each_aligned_model_has_a_slider(open_page, stub):
    stub.dera = {**DERA, "aligned": ["helpful", "harmless"], "lambda": [1, 0.5], "lambda_range": [-1, 1]}
    page = open_page()
    page.get_by_label("harmless", exact=True).first.fill("-0.25")
    ask(page)
    assert stub.bodies[0]["dera"]["lambda"] == [1, -0.25]


def test_history_settings_and_a_new_conversation(page, stub):
    page.locator("summary").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("9")
    page.get_by_label("New seed each time").uncheck()
    page.get_by_label("Seed", exact=True).fill("42")
    ask(page, "One")
    ask(page, "Two")
    body = stub.bodies[1]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 9, 42)
    said = [(each["role"], each["content"]) for each in body["messages"]]
    assert said == [("system", "Be brief."), ("user", "One"), ("assistant", "Hello there."), ("user", "Two")]
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    ask(page, "Three")
    assert [each["content"] for each in stub.bodies[2]["messages"]] == ["Be brief.", "Three"]


def test_comparing_asks_twice_with_one_seed(page, stub):
    page.get_by_label("Compare two strengths").check()
    page.get_by_role("group", name="Second strength").get_by_role("slider").fill("0.25")
    ask(page, "One")
    assert sorted(body["dera"]["lambda"] for body in stub.bodies) == [0.25, 1]
    assert len({body["seed"] for body in stub.bodies}) == 1
    left, right = (page.locator(".answer").nth(each).bounding_box() for each in range(2))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    stub.pieces = [("Another", [token("Another")])]
    ask(page, "Two")
    assert {body["messages"][1]["content"] for body in stub.bodies[2:]} == {"Hello there."}
    assert len({body["seed"] for body in stub.bodies}) == 2


def test_a_conversation_goes_on_with_the_chosen_answer(page, stub):
    page.get_by_label("Compare two strengths").check()
    events = stub.events

    def by_strength(body):
        text = f"at {body['dera']['lambda']}"
        stub.pieces = [(text, [token(text)])]
        return list(events(body))

    stub.events = by_strength
    ask(page, "One")
    page.get_by_label("Continue with this one").nth(1).check()
    ask(page, "Two")
    assert {body["messages"][1]["content"] for body in stub.bodies[2:]} == {"at 0"}


def test_numbers_of_a_token_on_hover_on_focus_and_by_colour(page, stub):
    stub.pieces = [("Big", [token("Big", 2.5, -4)]), (" small", [token(" small", 0.0, 0.0)])]
    ask(page)
    page.locator(".token").first.hover()
    for text in ("Big", "KL 2.500 nats", "log-ratio −4.000", "log-prob −1.500"):
        see(page, "#reading", text)
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    see(page, "#reading", "KL 0.000 nats")
    colours = {}
    for kind in ("kl", "ratio", "off"):
        page.locator(f"[name=colour][value={kind}]").check()
        shown = page.locator(".token").evaluate_all(BACKGROUNDS)
        colours[kind] = shown[0]
        assert (shown[0] == shown[1]) == (kind == "off")
        assert page.locator("#scale").is_visible() == (kind != "off")
    assert len(set(colours.values())) == 3


def test_a_character_of_several_tokens_is_one_piece(page, stub):
    half = token("\ufffd", 0.5)
    stub.pieces = [("A", [token("A")]), ("", [half]), ("é!", [half, token("!")]), ("", [token("</s>")])]
    ask(page)
    assert page.locator(".token").all_inner_texts() == ["A", "é!", "∎"]
    page.locator(".token").nth(1).hover()
    see(page, "#reading", "KL 1.250 nats")
    ask(page)
    assert stub.bodies[1]["messages"][1]["content"] == "Aé!"


def test_errors_are_told_where_the_answer_would_be(page, stub):
    stub.refusal = 429, {"Retry-After": "12"}, "4 are being answered"
    ask(page, "One")
    see(page, ".answer .problem", "The server is busy. Try again in 12 seconds.")
    assert page.locator("#prompt").input_value() == "One"
    stub.refusal = 400, {}, "max_tokens is too large"
    ask(page, "Two")
    see(page, ".turn:nth-child(2) .problem", "max_tokens is too large")
    half = "Half", [token("Half")]
    stub.refusal, stub.pieces = (), [half, {"error": {"message": "out of memory"}}, None]
    ask(page, "Three")
    see(page, ".turn:nth-child(3) .problem", "out of memory")
    see(page, ".turn:nth-child(3) .text", "Half")
    stub.pieces = [half, None]
    ask(page, "Four")
    see(page, ".turn:nth-child(4) .problem", "The connection ended before the answer did.")
    assert [each["content"] for each in stub.bodies[3]["messages"]] == ["Three", "Half", "Four"]


def test_a_key_is_asked_for_and_kept_in_the_tab(open_page, stub):
    stub.key = "secret"
    page = open_page()
    see(page, "#trouble", "This server needs an API key")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Tab")
    ask(page)
    page.reload()
    ask(page)
    see(page, ".text", "Hello there.")
    assert page.evaluate("localStorage.length") == 0 and "secret" not in copied(page, "Copy as curl")


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_ends_the_request(page, stub, by):
    stub.pause, stub.pieces = 0.02, [(" more", [token(" more")])] * 10_000
    ask(page, wait=False)
    see(page, ".text", "more more")
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    see(page, ".stats", "stopped by you")
    assert stub.left.wait(30)
    stub.pieces = []
    ask(page, "On")
    assert "more more" in stub.bodies[1]["messages"][1]["content"]


def test_text_is_continued_without_history(open_page, stub):
    stub.dera = {**DERA, "chat": False}
    page = open_page()
    see(page, "#about", "This model continues text")
    ask(page, "Once")
    ask(page, "Twice")
    assert stub.paths == ["/v1/completions"] * 2
    assert [body["prompt"] for body in stub.bodies] == ["Once", "Twice"]
    assert "messages" not in stub.bodies[1] and page.locator(".text").nth(1).inner_text() == "Hello there."


def test_the_keyboard_is_enough(page, stub):
    expect(page.locator(".strength").first).to_be_visible()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    see(page, ".stats", "finish: stop")
    body = stub.bodies[0]
    assert body["messages"][0]["content"] == "One\nTwo" and body["dera"]["lambda"] == 1.05
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.locator("h1").click()
    stops = []
    while not stops or stops[-1]["id"] != "send":
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUSED))
        assert stops[-1]["tag"] != "BODY" and stops[-1]["outlineStyle"] != "none"
    assert len(stops) == 13
    assert all(before["top"] < after["bottom"] for before, after in pairwise(stops))


def copied(page, name):
    """Returns what a button copies."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name=name).last.click()
    see(page, "#announcer", "Copied")
    return page.evaluate("navigator.clipboard.readText()")


def test_copies_have_the_strength(page, stub):
    page.get_by_role("slider").fill("1.25")
    ask(page, "It's \"so\": true, isn't it?")
    text = copied(page, "Copy as curl")
    assert f"{stub.url}v1/chat/completions" in text
    request = json.loads(re.search(r"-d '(.*)'", text, re.DOTALL)[1].replace("'\\''", "'"))
    assert request["dera"] == {"lambda": 1.25} and request["seed"] == stub.bodies[0]["seed"]
    assert request["messages"] == stub.bodies[0]["messages"]
    code = copied(page, "Copy as Python")
    compile(code, "copied", "exec")
    assert 'extra_body={"dera": {"lambda": 1.25}}' in code and f'base_url="{stub.url}v1"' in code
    assert copied(page, "Copy text") == "Hello there."


def test_text_with_markup_is_inert(page, stub):
    attack = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    stub.pieces = [(attack, [token(attack)])]
    ask(page, attack)
    assert page.locator(".text").inner_text() == attack and page.locator(".asked").inner_text().endswith(
        attack
    )
    page.locator(".token").first.hover()
    see(page, "#reading", attack)
    assert page.title() == "dera_jax" and page.locator("main :is(script, img)").count() == 0
    assert "innerHTML" not in PAGE.read_text(encoding="utf-8")


def test_all_controls_have_names(page):
    page.get_by_label("Compare two strengths").check()
    ask(page)
    assert page.evaluate(NAMELESS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(open_page, stub, scheme):
    stub.pieces = [(f" {kl}", [token(f" {kl}", kl, ratio)]) for kl, ratio in ((0.1, 9), (0.7, -0.4), (5, -9))]
    stub.pieces += [("", [token("</s>", 9, 9)])]
    page = open_page(color_scheme=scheme)
    seen, faint = page.evaluate(FAINT)
    assert seen > 15 and faint == []
    page.locator("summary").click()
    page.get_by_label("Compare two strengths").check()
    ask(page)
    stub.refusal = 400, {}, "no"
    ask(page)
    for kind in ("kl", "ratio", "off"):
        page.locator(f"[name=colour][value={kind}]").check()
        seen, faint = page.evaluate(FAINT)
        assert seen > 40 and faint == []


def test_a_phone_shows_everything_in_its_width(open_page, stub):
    stub.dera = {**DERA, "aligned": ["a-rather-long-name-of-an-aligned-model-7b-v0.1"]}
    stub.pieces = [("W" * 200, [token("W" * 200)]), (" and so on", [token(" and so on")])]
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True)
    page.locator("summary").click()
    page.get_by_label("Compare two strengths").check()
    ask(page, "x" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('footer').scrollWidth") <= 360
    first, second = (page.locator(".answer").nth(each).bounding_box() for each in range(2))
    assert first["x"] == second["x"] and first["y"] + first["height"] <= second["y"]
    page.locator(".token").last.tap()
    see(page, "#reading", "and so on")


def test_nothing_moves_for_those_who_ask_for_that(open_page, stub):
    stub.pause = 0.3
    page = open_page(reduced_motion="reduce")
    ask(page, wait=False)
    caret = "getComputedStyle(document.querySelector('.writing .text'), '::after').animationName"
    assert page.evaluate(caret) == "none"
