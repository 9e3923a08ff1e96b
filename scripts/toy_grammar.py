"""The toy pair's text: small stories from a village, written by a grammar.

A story is an opening, which becomes the prompt, and a continuation of 1 to 8 sentences. A scene is
drawn first (who, which trade, where, the weather, the mood) and every sentence speaks of it, so
names and things stay the same, and the mood shows in the words.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

WOMEN = "Anna Mira Ida Lena Rosa Nora".split()
MEN = "Tom Otto Max Jan Leo Sam".split()

# What each trade is called, where it is done, what is made, and what can go wrong with its tool.
TRADES = [
    dict(trade="baker", shop="bakery", makes="bakes", things="bread|rolls|cakes",
         tool="oven", fault="is cold", cure="dry wood", mended="is hot"),
    dict(trade="smith", shop="forge", makes="makes", things="nails|knives|gates",
         tool="fire", fault="is out", cure="dry wood", mended="burns"),
    dict(trade="tailor", shop="workshop", makes="sews", things="shirts|coats|hats",
         tool="lamp", fault="is out", cure="oil", mended="burns"),
    dict(trade="potter", shop="workshop", makes="makes", things="bowls|cups|jars",
         tool="wheel", fault="is stuck", cure="oil", mended="turns"),
    dict(trade="fisher", shop="harbour", makes="catches", things="trout|herring|crabs",
         tool="net", fault="is torn", cure="strong thread", mended="is whole"),
    dict(trade="gardener", shop="garden", makes="grows", things="roses|beans|plums",
         tool="spade", fault="is broken", cure="a new handle", mended="is whole"),
    dict(trade="weaver", shop="workshop", makes="weaves", things="carpets|scarves|blankets",
         tool="loom", fault="is stuck", cure="oil", mended="runs"),
    dict(trade="cook", shop="kitchen", makes="cooks", things="soup|fish|beans",
         tool="stove", fault="is cold", cure="dry wood", mended="is hot"),
    dict(trade="carpenter", shop="workshop", makes="builds", things="chairs|tables|boats",
         tool="saw", fault="is broken", cure="a new handle", mended="is whole"),
    dict(trade="painter", shop="garden", makes="paints", things="boats|birds|houses",
         tool="brush", fault="is broken", cure="a new handle", mended="is whole"),
]  # fmt: skip

WORDS = {
    "place": "Orsa|Velby|Tarn|Morra|Sund|Halm",
    "day": "Monday|Tuesday|Friday|Sunday",
    "weather": "sunny|rainy|snowy|windy|foggy",
    "pet": "cat|dog|goat",
    "gift": "a jar of honey|a warm coat|a red rose|some tea",
    "topic": "the weather|old times|the market|the summer",
    "view": "river|church|old bridge|lake",
    "news": "letter|card",
}
"""Drawn once for a scene."""

MOODS = ["glad", "sad", "calm"]

# A sentence for a symbol; those under `symbol.mood` or `symbol.weather` are for that mood or weather.
RULES = {
    "sky.sunny": ["The sun is warm.", "The windows shine in the sun.", "Children play by the {view}."],
    "sky.rainy": ["Rain falls on the roofs.", "The street is wet.", "The {view} is grey in the rain."],
    "sky.snowy": ["Snow lies on the roofs.", "The path to the {view} is white.", "It snows all day."],
    "sky.windy": ["The wind is strong.", "A hat flies over the {view}.", "The doors shake in the wind."],
    "sky.foggy": ["Fog hangs over the {view}.", "Nobody can see the {view}.", "The air is wet and white."],
    "work": ["{she} {makes} {thing} and {other}.", "{she} {makes} {thing} until noon.",
             "First {she} {makes} {thing}, then {other}.",
             "{she} {makes} {thing} for the people of {place}."],
    "work.glad": ["{she} sings and {makes} {thing}.", "{she} {makes} {thing}, more than ever before."],
    "work.sad": ["{she} {makes} {thing}, but the work is slow.", "{she} {makes} {thing} and says nothing."],
    "work.calm": ["{she} {makes} {thing} and takes {her} time.", "{she} {makes} {thing}, as always."],
    "crowd.glad": ["Many people come to the {shop}.", "Everyone likes {her} {thing}.",
                   "The people thank {him} and laugh."],
    "crowd.sad": ["Nobody comes to the {shop}.", "Nobody wants {her} {thing}.",
                  "Only one old man comes, and he soon leaves."],
    "crowd.calm": ["A few people come to the {shop}.", "Now and then somebody says hello.",
                   "The {shop} is quiet."],
    "fault": ["The {tool} {fault}.", "Today the {tool} {fault}.", "There is a problem: the {tool} {fault}."],
    "help.glad": ["{guest} brings {cure}.", "Luckily {guest} has {cure}."],
    "help.sad": ["{she} needs {cure}, but has no money.", "{she} looks everywhere for {cure}."],
    "help.calm": ["{she} goes to the market and buys {cure}.", "{she} waits until {guest} brings {cure}."],
    "mended.glad": ["Soon the {tool} {mended} again.", "Now the {tool} {mended}."],
    "mended.sad": ["{she} cannot work today.", "So {she} goes home early."],
    "mended.calm": ["Soon the {tool} {mended} again.", "Now the {tool} {mended}."],
    "visit": ["{guest} comes by at noon.", "At noon {guest} knocks at the door.",
              "{guest} comes with {gift}."],
    "talk.glad": ["They eat cake and laugh.", "They sing an old song.",
                  "They drink tea and talk about {topic}."],
    "talk.sad": ["They talk about {topic} and sigh.", "{friend} has bad news.", "{friend} cannot stay long."],
    "talk.calm": ["They drink tea and talk about {topic}.", "They sit and look at the {view}.",
                  "They say little."],
    "leave.glad": ["{friend} will come again on {day}.", "{she} gives {friend} a big hug."],
    "leave.sad": ["Then {friend} leaves, and the room is empty.", "{she} does not want to be alone."],
    "leave.calm": ["Then {friend} goes home.", "{friend} stays until the evening."],
    "lost": ["{her} {pet} is gone.", "{she} cannot find {her} {pet}."],
    "search": ["{she} looks under the bed.", "{she} looks in the {shop}.", "{she} calls and calls.",
               "{she} asks {guest} for help."],
    "found.glad": ["At last the {pet} jumps into {her} arms.", "Hurrah, the {pet} comes home!"],
    "found.sad": ["The {pet} does not come home.", "Nobody has seen the {pet}."],
    "found.calm": ["The {pet} sleeps under the table.", "In the end the {pet} comes home."],
    "letter": ["A {news} comes from {far}, {her} cousin.", "There is a {news} from {far}, {her} cousin."],
    "told.glad": ["{far} is well and sends {gift}.", "{far} has a baby now.", "{far} will come on {day}."],
    "told.sad": ["{far} is ill.", "{far} cannot come this year.", "{far} has lost {far_her} work."],
    "told.calm": ["{far} writes about {topic}.", "{far} sends {gift}.", "It is about {topic}."],
    "read.glad": ["{she} reads it aloud and smiles.", "{she} shows it to everyone."],
    "read.sad": ["{she} reads it and cries.", "{she} burns the {news}."],
    "read.calm": ["{she} reads it twice.", "{she} puts it on the shelf."],
    "feel.glad": ["glad", "happy", "proud", "full of joy"],
    "feel.sad": ["sad", "tired", "lonely", "full of worry"],
    "feel.calm": ["calm", "well", "content", "in no hurry"],
    "mood": ["{she} is {feel}.", "{she} is {feel} today.", "{name} is {feel}."],
    "end": ["In the evening {she} is {feel}.", "In the evening {she} goes home and is {feel}."],
    "end.glad": ["What a good day!", "{she} falls asleep with a smile.", "Life in {place} is good."],
    "end.sad": ["What a bad day!", "{she} cannot sleep.", "The night is long and cold."],
    "end.calm": ["Then {she} goes to bed.", "The night is quiet.", "Tomorrow is another day."],
    "who": ["{guest} does.", "It is {guest} who does.", "Nobody, but {she} does not mind."],
    "where": ["{she} lives in {place}.", "{she} lives near the {view} of {place}."],
}  # fmt: skip

PLOTS = {
    "sky": ["sky"],
    "work": ["work", "crowd"],
    "fault": ["fault", "help", "mended"],
    "pet": ["lost", "search", "found"],
    "visit": ["visit", "talk", "leave"],
    "letter": ["letter", "told", "read"],
}
"""Sentences that belong together, in the order of the day; a plot may be cut short."""

OPEN = {"fault", "lost", "search", "letter"}
"""Symbols that a story does not stop at: something has to follow."""


@dataclass(frozen=True)
class Form:
    """A kind of opening, and what it leads to."""

    opening: str
    begins: tuple[str, ...]
    """Symbols of the first sentences, told in this order."""
    sizes: range
    """Sentences of the continuation: smallest to largest."""


FORMS = [
    Form("{name} the {trade} wakes up early on {day}.", (), range(1, 6)),
    Form("{name} is the {trade} of {place}.", ("work",), range(1, 6)),
    Form("A {weather} day in {place}. {name} the {trade} goes out.", (), range(1, 6)),
    Form("It is {day}. {name} the {trade} is {feel}.", (), range(1, 6)),
    Form("{name}, the {trade} of {place}, has lost {her} {pet}.", ("search", "found"), range(2, 5)),
    Form("{far} writes a {news} to {name}, the {trade} of {place}.", ("told", "read"), range(1, 5)),
    Form("On {day} the {tool} of {name} the {trade} {fault}.", ("help", "mended"), range(1, 5)),
    Form("{friend} visits {name}, the {trade} of {place}.", ("talk", "leave"), range(1, 5)),
    Form("The long {day} of {name} the {trade}:", ("sky", "work", "crowd"), range(4, 8)),
    Form("How is {name}, the {trade} of {place}?", ("mood", "work"), range(1, 3)),
    Form("What does {name} the {trade} do on {day}?", ("work",), range(1, 4)),
    Form("Who helps {name}, the {trade} of {place}?", ("who", "help"), range(1, 3)),
    Form("Where does {name} the {trade} live?", ("where", "work"), range(1, 3)),
]


def write_stories(seed: int) -> Iterator[tuple[str, str]]:
    """Yields an endless stream of (opening, continuation); the same for equal seeds."""
    rng = random.Random(seed)
    while True:
        form = rng.choice(FORMS)
        scene = _Scene(rng)
        opening = scene.sentence(form.opening)
        yield opening, "".join(f" {sentence}" for sentence in _continuation(rng, form, scene))


def _continuation(rng: random.Random, form: Form, scene: "_Scene") -> list[str]:
    """Returns the sentences: the form's own, then plots in the order of the day, perhaps an end."""
    size = rng.choice(form.sizes)
    begun = {plot for plot, symbols in PLOTS.items() if set(symbols) & set(form.begins)}
    if "fault" in begun:
        begun.add("work")  # which may be impossible today
    plots = [plot for plot in PLOTS if plot not in begun and rng.random() < 0.5 + 0.05 * size]
    symbols = [*form.begins, *(symbol for plot in plots for symbol in PLOTS[plot])][:size]
    while len(symbols) > len(form.begins) and symbols[-1] in OPEN:
        symbols.pop()
    if not symbols or (len(symbols) >= len(form.begins) and len(symbols) < size) or rng.random() < 0.2:
        symbols.append("end")
    return [scene.sentence(scene.choose(symbol)) for symbol in symbols]


class _Scene:
    """Who, where and in what mood; fills sentences."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.words = {slot: rng.choice(words.split("|")) for slot, words in WORDS.items()}
        self.words |= rng.choice(TRADES)
        self.words["thing"], self.words["other"] = rng.sample(self.words.pop("things").split("|"), 2)
        woman = rng.random() < 0.5
        self.words |= dict(she="she", her="her", him="her") if woman else dict(she="he", her="his", him="him")
        self.words["name"] = rng.choice(WOMEN if woman else MEN)
        self.words["friend"], self.words["far"] = rng.sample(
            [n for n in WOMEN + MEN if n != self.words["name"]], 2
        )
        self.words["far_her"] = "her" if self.words["far"] in WOMEN else "his"
        self.relation = rng.choice(
            ["neighbour", "friend", "sister" if self.words["friend"] in WOMEN else "brother"]
        )
        # Sun makes glad and fog calm, more often than not.
        likely = {"sunny": "glad", "rainy": "sad", "foggy": "calm"}.get(self.words["weather"])
        self.mood = likely if likely and rng.random() < 0.5 else rng.choice(MOODS)
        self.introduced = False

    def choose(self, symbol: str) -> str:
        """Returns one of the symbol's sentences for this mood and weather."""
        names = (symbol, f"{symbol}.{self.mood}", f"{symbol}.{self.words['weather']}")
        return self.rng.choice([sentence for name in names for sentence in RULES.get(name, ())])

    def sentence(self, template: str) -> str:
        """Returns the template with its slots filled, beginning with a capital."""
        words = dict(self.words, feel=self.choose("feel"), guest=self.words["friend"])
        if "{guest}" in template and not self.introduced:
            words["guest"] = f"{words['friend']}, {words['her']} {self.relation},"
        self.introduced |= "{guest}" in template or "{friend}" in template
        text = template.format(**words)
        return text[0].upper() + text[1:]
