"""What an E2E text says that its meaning representation does not: as a reward, and in words."""

import re
from collections.abc import Sequence
from functools import cache

from dera_jax.rewards.slots import parse_slots, slot_coverage

PLACES = (
    "Alimentum|Aromi|Bibimbap House|Browns Cambridge|Clowns|Cocum|Cotto|Fitzbillies|Midsummer House|"
    "Taste of Cambridge|The Cambridge Blue|The Cricketers|The Eagle|The Golden Palace|The Mill|The Phoenix|"
    "The Punter|The Wrestlers|Travellers Rest Beefeater|Wildwood|Blue Spice|Giraffe|Green Man|Loch Fyne|Strada|"
    "The Plough|The Vaults|The Waterman|Zizzi|Burger King|Café Sicilia|Crowne Plaza Hotel|Clare Hall|"
    "The Portland Arms|The Bakers|Café Brazil|The Sorrento|Raja Indian Cuisine|Ranch|Rainbow Vegetarian Café|"
    "All Bar One|Express by Holiday Inn|The Rice Boat|Avalon|Café Rouge"
).split("|")
"""Every name in E2E's development and test sets."""

VALUES = {
    "eatType": ["coffee shop", "pub"],  # any of them may be called a restaurant
    "food": ["Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"],
    "priceRange": ["cheap", "moderate", "high"],
    "customer rating": ["low", "average", "high"],
    "area": ["city centre", "riverside"],
    "familyFriendly": ["yes", "no"],
}
"""What else there is; of several ways to say the same, one."""

_SAME = {"£20-25": "moderate", "less than £20": "cheap", "more than £30": "high",
         "1 out of 5": "low", "3 out of 5": "average", "5 out of 5": "high"}  # fmt: skip


def invented(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Returns −1 for each text that says what its input does not, else 0."""
    return [-float(bool(inventions(*each))) for each in zip(prompts, completions, strict=True)]


@cache
def inventions(meaning: str, text: str) -> list[tuple[str, str]]:
    """Returns (slot, value) for what `text` says beside `meaning`: a place, or another value of a slot.

    Where a text says what it should of a slot, other words that could mean another value are let pass.

    >>> inventions("name[Aromi], food[French]", "Aromi is a cheap French pub near The Mill.")
    [('place', 'The Mill'), ('eatType', 'pub'), ('priceRange', 'cheap')]
    """
    given = {slot: _SAME.get(value, value) for slot, value in parse_slots(meaning)}
    mine = {given.get("name"), given.get("near")}
    found = [
        ("place", place) for place in PLACES if place not in mine and slot_coverage(f"near[{place}]", text)
    ]
    for place in PLACES:  # an Indian Cuisine by name is not Indian food
        text = re.sub(re.escape(place), "x", text, flags=re.IGNORECASE)
    for slot, values in VALUES.items():
        said = [(slot, value) for value in values if slot_coverage(f"{slot}[{value}]", text)]
        found += [] if (slot, given.get(slot)) in said else said
    return found
