"""The reward concepts: words in any form."""

import json
import sys

import pytest

from dera_jax.rewards.concepts import coverage, inflections
from dera_jax.rewards.registry import parse_rewards


def test_words_are_found_in_any_form():
    assert coverage(["go", "child", "big"], "The children went to the biggest house.") == 1.0
    assert coverage("dog_N#run_V#tree_N", "A dog was Running.") == pytest.approx(2 / 3)
    assert coverage(["cat"], "concatenate cats'") == 1.0 and coverage(["cat"], "category") == 0.0
    assert coverage(["blicket"], "two blicket") == 1.0
    assert coverage(None, "x") is None and coverage([], "x") is None


def test_a_column_of_something_else_is_told():
    for column in (3, [1, 2], {"a": 1}):
        with pytest.raises(ValueError, match="concepts: expected a list of words"):
            coverage(column, "x")
    with pytest.raises(ValueError, match="expected concepts, which reads each prompt's column"):
        parse_rewards("concepts:a|b")


def test_without_its_library_it_says_what_to_install(monkeypatch):
    inflections.cache_clear()
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    with pytest.raises(ValueError, match=r'pip install "dera_jax\[concepts\]"'):
        parse_rewards("concepts")
    inflections.cache_clear()


@pytest.mark.data("commongen")
def test_sentences_that_people_wrote_cover_their_concepts(data):
    lines = (data / "commongen" / "commongen.dev.jsonl").read_text().splitlines()
    found = [coverage(s["concept_set"], scene) for s in map(json.loads, lines) for scene in s["scene"]]
    assert len(found) > 3000 and sum(found) / len(found) > 0.98
