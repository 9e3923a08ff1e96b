"""Slot coverage: sentences read by hand, and the sentences that people wrote for real representations."""

import csv
import random

import pytest

from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import parse_rewards
from dera_jax.rewards.slots import parse_slots, slot_coverage


def of_texts(prompts, texts, **columns):
    tokens = [list(range(len(text.split()))) for text in texts]
    return Completions(prompts, texts, tokens, ["eos"] * len(texts), str, columns)


def slots(prompts, texts, **columns):
    (reward,) = parse_rewards("slots")
    return reward(of_texts(prompts, texts, **columns))


SAID = {
    "name[The Eagle]": ["THE EAGLE is a pub.", "At the eagle's there is coffee."],
    "near[Café Sicilia]": ["It is near Cafe Sicilia.", "Café Sicilia is next door."],
    "eatType[coffee shop]": ["two coffee shops", "A coffee-shop."],
    "food[English]": ["English food", "a British place"],
    "area[city centre]": ["in the city center", "in the centre of the city", "a city-centre pub", "downtown"],
    "area[riverside]": ["by the river", "in the Riverside area"],
    "priceRange[cheap]": ["It is cheap.", "low-priced food", "prices are low", "for less than £20"],
    "priceRange[less than £20]": [
        "under £20",
        "less than 20 pounds",
        "a cheap pub",
        "the price range is low",
    ],
    "priceRange[moderate]": ["moderately priced", "the average price range", "between £20 and £25"],
    "priceRange[£20-25]": ["costs £20-25", "£20-£25 meals", "£20 to £25", "a moderate price range"],
    "priceRange[high]": ["high prices", "an expensive pub", "prices are quite high", "highly-priced"],
    "priceRange[more than £30]": ["more than £30", "over £30", "a high price range"],
    "customer rating[1 out of 5]": [
        "rated 1 out of 5",
        "a one-star pub",
        "one out of five",
        "1/5",
        "poor reviews",
    ],
    "customer rating[low]": ["a low customer rating", "low-rated", "its rating is very low", "1 star"],
    "customer rating[average]": ["an average rating", "customers rate it average", "3 out of 5 stars"],
    "customer rating[3 out of 5]": ["three stars", "3 out of 5", "rated as average"],
    "customer rating[5 out of 5]": ["five-star", "excellent reviews", "highly rated", "5 out of 5"],
    "customer rating[high]": ["a high customer rating", "ratings are high", "customers rate it highly"],
    "familyFriendly[yes]": ["family-friendly", "it welcomes kids", "not cheap and it is child friendly"],
    "familyFriendly[no]": [
        "not family-friendly",
        "it isn't a place for children",
        "No kids, please.",
        "families are not welcome",
        "adults only",
        "non-family-friendly",
        "does not cater to families",
    ],
}

NOT_SAID = {
    "name[The Eagle]": ["Eagle", "The Beagle", ""],
    "food[English]": ["Englishman"],
    "area[riverside]": ["in the city centre"],
    "priceRange[high]": ["a high customer rating", "moderate prices", "customer rating is high"],
    "priceRange[cheap]": ["a low rating", "low customer rating and moderate prices"],
    "priceRange[more than £30]": ["less than £20", "£20-25"],
    "customer rating[high]": [
        "high prices",
        "a high price range and average rating",
        "the price range is high",
    ],
    "customer rating[low]": ["low prices", "a 5 out of 5 rating"],
    "customer rating[1 out of 5]": ["3 out of 5", "5 out of 5", "1 pub"],
    "familyFriendly[yes]": ["not family-friendly", "adults only", "A pub."],
    "familyFriendly[no]": [
        "family-friendly",
        "not cheap and it is family friendly",
        "No. A pub for families.",
    ],
}


@pytest.mark.parametrize(("meaning", "share"), [*((m, 1) for m in SAID), *((m, 0) for m in NOT_SAID)])
def test_what_says_a_value(meaning, share):
    texts = (SAID if share else NOT_SAID)[meaning]
    assert {text: slot_coverage(meaning, text) for text in texts} == dict.fromkeys(texts, share)


@pytest.mark.data("e2e")
def test_every_value_of_the_data_is_tried_here(data):
    tried = {parse_slots(meaning)[0] for meaning in SAID}
    literal = {"name", "near", "eatType", "food"}
    found = {
        pair for row in rows(data, "devset") for pair in parse_slots(row["mr"]) if pair[0] not in literal
    }
    assert found == {pair for pair in tried if pair[0] not in literal}


def test_names_say_nothing_else():
    meaning = "name[Aromi], food[Indian], near[Raja Indian Cuisine]"
    assert slot_coverage(meaning, "Aromi is near Raja Indian Cuisine.") == 2 / 3
    assert slot_coverage(meaning, "Aromi is an Indian place near Raja Indian Cuisine.") == 1


def rows(data, name):
    with open(data / f"e2e/{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.data("e2e")
@pytest.mark.parametrize("name", ["devset", "testset_w_refs"])
def test_people_say_nearly_all_slots_and_texts_on_other_things_do_not(name, data):
    found = rows(data, name)
    meanings, texts = [row["mr"] for row in found], [row["ref"] for row in found]
    own = slots(meanings, texts)
    random.Random(0).shuffle(texts)
    others = slots(meanings, texts)
    # 0.926 and 0.919; 0.29 and 0.28. What is missing is left out by the people, as far as read.
    assert sum(own) / len(own) > 0.91
    assert sum(others) / len(others) < 0.32
    assert min(own) < 0.5 and max(own) == 1


def test_the_representation_is_the_column_or_the_prompt_or_the_last_message():
    chat = [{"role": "system", "content": "food[French]"}, {"role": "user", "content": "Write: name[Aromi]"}]
    assert slots(["name[Aromi], food[French]", chat], ["Aromi", "Aromi"]) == [0.5, 1]
    columns = {"meaning_representation": ["food[French]", None]}
    assert slots(["name[Aromi]", "name[Aromi]"], ["Aromi", "Aromi"], **columns) == [0, 1]


@pytest.mark.parametrize("prompt", ["Once upon a time", "", "[]", "name[]", "name[ ]", "a\nb" * 100])
def test_prompts_without_slots_end_in_one_line(prompt):
    with pytest.raises(ValueError, match=r"^reward slots: expected slots such as name\[The Eagle\]") as error:
        slots([prompt], ["Aromi"])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 160


def test_mistakes_in_the_specification():
    for spec in ("slots:", "slots:name"):
        with pytest.raises(ValueError, match=f"expected slots, found '{spec}'"):
            parse_rewards(spec)
    with pytest.raises(ValueError, match=r"reward slots: expected slots .*found 3$"):
        slots(["name[Aromi]"], ["Aromi"], meaning_representation=[3])
