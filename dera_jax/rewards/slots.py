"""Slot coverage: how much of a meaning representation, `name[The Eagle], food[French]`, a text says.

For the E2E data set (arXiv:1706.09254). The reward `slots` reads the meaning representation in the column
`meaning_representation`, else in the prompt (of a chat: in its last message). What counts as saying a value:

- Letters' case, accents and hyphens are ignored, center is centre; only whole words match.
- `name`, `near`, `eatType` and slots not named here: the value as it stands (it may end in -s). Found names
  are then taken out of the text: a place near Raja Indian Cuisine is not an Indian one for that.
- `food`: the value; British for English, pasta or spaghetti for Italian, sushi for Japanese.
- `area`: the value; for `riverside` the river, for `city centre` its center, downtown or the town centre.
- `priceRange`: of three classes, as people use one for the other: cheap = less than £20, moderate =
  £20-25, high = more than £30. A sum of the class (£20 to £25), a word for it (inexpensive), or a word
  that needs the price beside it (high prices; a price range that is low).
- `customer rating`: likewise, low = 1 out of 5, average = 3 out of 5, high = 5 out of 5. The number, in
  digits or letters, out of 5, of 5 or as stars; or a word (poor, low, excellent) beside the rating.
- `familyFriendly`: `yes` is families, kids or children spoken of without a negation, `no` with one
  (not family-friendly, no children, adults only).

Standard library only.
"""

import re
import unicodedata
from functools import lru_cache

_SLOT = re.compile(r"([^\W\d_][\w ]*?) *\[ *([^\[\]]*[^\[\] ]) *\]")
_PRICES = {
    "low": (
        r"(?:less than|under|below|up to|lower than|cheaper than|not? more than) ?£? ?20|£ ?20 or less|"
        r"cheap\w*|inexpensive\w*|affordabl\w+|budget|bargain|economical",
        r"low\w*|small|good|great|little|reasonabl\w+",
    ),
    "middle": (
        r"£? ?20 ?(?:to|and|or|through)? ?£? ?25|moderate\w*|reasonabl\w+|affordabl\w+",
        r"average\w*|mid|middle|medium|midrange|normal|fair\w*|decent",
    ),
    "high": (
        r"(?:more than|greater than|over|above|at least|upwards of|higher than|excess of|from) ?£? ?30|"
        r"£ ?30 (?:plus|or more|and up\w*)|expensive\w*|pric(?:e?y|ier)|costly|upscale|high end|up market|upmarket",
        r"high\w*|upper|above average|premium|big|steep|large",
    ),
}
"""Class -> what says it alone, and what says it beside a word for the price."""
_RATINGS = {
    "low": (
        r"(?:1|one) ?(?:out of|of|/) ?(?:a possible )?(?:5|five)|(?:1|one|single) stars?",
        r"low\w*|poor\w*|bad\w*|not (?:so |very |well )?(?:good|high\w*|great|rated)|terribl[ey]|below average|1|one",
    ),
    "middle": (
        r"(?:3|three) ?(?:out of|of|/) ?(?:a possible )?(?:5|five)|(?:3|three) stars?|mediocre",
        r"average\w*|moderate\w*|mid\w*|medium|decent\w*|fair\w*|ok|okay|3|three",
    ),
    "high": (
        r"(?:5|five) ?(?:out of|of|/) ?(?:a possible )?(?:5|five)|(?:5|five) stars?",
        r"high\w*|excellent\w*|great|good|top|well|best|outstanding|perfect\w*|positive\w*|superb|5|five",
    ),
}
_CLASSES = {
    "pricerange": {
        "cheap": "low", "less than £20": "low", "moderate": "middle", "£20 25": "middle",
        "high": "high", "more than £30": "high",
    },
    "customerrating": {
        "low": "low", "1 out of 5": "low", "average": "middle", "3 out of 5": "middle",
        "high": "high", "5 out of 5": "high",
    },
}  # fmt: skip
_GRADED = {
    "pricerange": (_PRICES, r"pric\w+|cost\w*|expens\w+|charg\w+"),
    "customerrating": (_RATINGS, r"rat(?:ed|es?|ings?)|reviews?|reviewed|scor\w+|customers?|feedback"),
}
_AREAS = {
    "riverside": r"riverside|river side|river ?front|river ?banks?|river",
    "city centre": r"(?:city|town|inner) ?centre|centre of (?:the |our )?(?:city|town)|centre city|"
    r"(?:city|centrally|central)|downtown",
}
_FOODS = {
    "english": "english|british",
    "italian": "italian|pasta|spaghetti",
    "japanese": "japanese|sushi",
}
_FAMILY = r"(?:famil(?:y|ies)|kids?|child(?:ren)?s?)"
_NOT = r"(?:not|no|non|never|nor|lack(?:s|ing)?|without|un(?:suitable|friendly|welcoming)|inappropriate)"
_GAP = r"(?:(?!(?:and|but|it|is|which|with|has)\b)\w+ ){0,6}?"
_UNFRIENDLY = re.compile(
    rf"\b(?:{_NOT} {_GAP}{_FAMILY}|{_FAMILY}(?: \w+){{0,3}} (?:not|no|un\w+|never|prohibited|banned)|"
    r"adults? (?:only|oriented|friendly)|only (?:for )?adults?)\b"
)
_FRIENDLY = re.compile(rf"\b{_FAMILY}\b")


def parse_slots(meaning: str) -> list[tuple[str, str]]:
    """Returns the slots of a meaning representation, as (name, value).

    >>> parse_slots("name[The Eagle], customer rating[5 out of 5]")
    [('name', 'The Eagle'), ('customer rating', '5 out of 5')]
    """
    return _SLOT.findall(meaning)


def slot_coverage(meaning: object, text: str) -> float:
    """Returns the share of a meaning representation's slots whose value is found in `text`.

    Raises:
      ValueError: `meaning` is no text with slots in it.

    >>> slot_coverage("name[Aromi], area[city centre], familyFriendly[no]", "Aromi is in the city center.")
    0.6666666666666666
    """
    slots = parse_slots(meaning) if isinstance(meaning, str) else []
    if not slots:
        raise ValueError(
            f"reward slots: expected slots such as name[The Eagle], food[French], found {meaning!r:.60}"
        )
    words, said = _plain(text), {}
    # Names first, to take them out.
    for slot, value in sorted(slots, key=lambda slot: _key(slot[0]) not in ("name", "near")):
        said[slot, value] = _says(words, _key(slot), _plain(value))
        if _key(slot) in ("name", "near"):
            words = _pattern(_key(slot), _plain(value)).sub("x", words)
    return sum(said[slot] for slot in slots) / len(slots)


def _key(slot: str) -> str:
    return re.sub("[ _]", "", slot.lower())


def _says(words: str, slot: str, value: str) -> bool:
    """Returns whether `words` say that `slot` has `value`, all of them as `_key` and `_plain` write them."""
    if slot == "familyfriendly" and value in ("yes", "no"):
        unfriendly = bool(_UNFRIENDLY.search(words))
        return unfriendly if value == "no" else not unfriendly and bool(_FRIENDLY.search(words))
    return bool(_pattern(slot, value).search(words))


def _plain(text: str) -> str:
    """Returns text without what is ignored, words set apart by single spaces, sentences by full stops."""
    text = unicodedata.normalize("NFKD", text.lower().replace("n't", " not").replace("n’t", " not"))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub("['’`]", "", re.sub('[-‐‑–—_"]', " ", text)).replace("center", "centre")
    return " ".join(re.sub(r"([^\w£/ ])", r" \1 ", text).split())


@lru_cache(maxsize=4096)
def _pattern(slot: str, value: str) -> re.Pattern:
    """Returns what finds a value, both as `_plain` writes them."""
    if value in _CLASSES.get(slot, {}):
        grades, noun = _GRADED[slot]
        alone, beside = grades[_CLASSES[slot][value]]
        before = rf"(?:{beside}) (?:(?!and\b)\w+ )?(?:{noun})"
        behind = rf"(?:{noun}) (?:(?!and\b)\w+ ){{0,3}}?(?:{beside})"
        found = rf"{alone}|{before}|{behind}"
    else:
        variants = {"area": _AREAS, "food": _FOODS}.get(slot, {})
        found = variants.get(value) or rf"{re.escape(value)}s?"
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)")
