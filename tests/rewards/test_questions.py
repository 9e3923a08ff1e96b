"""What judges are asked, and how their answers are read."""

import pytest

from dera_jax.rewards.questions import (
    COMPARISONS,
    compare_messages,
    grade_messages,
    read_preference,
    read_rating,
    read_yes_no,
)


@pytest.mark.parametrize("question", COMPARISONS)
def test_a_comparison_shows_the_prompt_once_and_both_completions_in_order(question):
    (message,) = compare_messages(question, ("the prompt", "one completion"), ("the prompt", "another"))
    assert message["role"] == "user" and message["content"].count("the prompt") == 1
    assert message["content"].index("one completion") < message["content"].index("another")
    assert read_preference(message["content"]) is None  # who repeats the question has said nothing


def test_chats_are_shown_whole_and_the_start_of_an_answer_is_part_of_it():
    before = [{"role": "user", "content": "Hi"}]
    first = [*before, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]
    second = [*before, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Why?"}]
    (message,) = compare_messages("chat", (first, "because"), (second, "so"))
    for text in ("[user] Hi\n\n[assistant] Hello.\n\n[user] Why?", "[assistant] Hm.", "because", "so"):
        assert text in message["content"]
    started = [*before, {"role": "assistant", "content": "Good "}]
    (message,) = grade_messages("mt-bench", started, "day!")
    assert "<answer>\nGood day!\n</answer>" in message["content"] and "[assistant]" not in message["content"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A says more.\n[[A]]", 1), ("[[b]]", 0), ("[[ tie ]]", 0.5), ("[[C]]", 0.5), ("A", 1), ("**B**.", 0),
        ("<think>[[A]]?</think> [[B]]", 0), ("<think>Surely [[A]]", None), ("[[A]] but also [[B]]", None),
        ("A is better", None), ("", None), ("[[D]]", None), ("[[A]] yes, [[A]]", 1),
    ],
)  # fmt: skip
def test_preferences_are_read_where_there_is_exactly_one(answer, expected):
    assert read_preference(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", 1), ("no.", 0), ("**Yes**, it adds a price.", 1), ("Nothing", None), ("[[no]]", 0), ("", None)],
)
def test_yes_and_no(answer, expected):
    assert read_yes_no(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Rating: [[7]]", 7), ("[[7.5]]", 7.5), ("[[8/10]]", 8), ("[[0]]", None), ("[[n]]", None),
     ("[[3]] or [[4]]", None), ("8", None), ("[[10]]", 10), ("[[100]]", None)],
)  # fmt: skip
def test_ratings_are_from_1_to_10(answer, expected):
    assert read_rating(answer) == expected


def test_the_question_about_additions_has_examples_of_both_kinds():
    (message,) = grade_messages("hallucination", "name[Aromi]", "Aromi is cheap.")
    text = message["content"]
    assert (text.count("Additional: yes"), text.count("Additional: no")) == (3, 3)
    assert text.endswith("<rewrite>\nAromi is cheap.\n</rewrite>\nAdditional:")
