"""What language models are asked as judges, and how their answers are read.

Comparisons (`summary`, `chat`) show two completions of one prompt as A and B; grades (`hallucination`,
`mt-bench`) show one. The tasks are those of the paper (D.1, D.3 to D.5), the wording is our own. A
verdict stands between double brackets, so that it is told from the judge's other words.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Prompt = str | Sequence[Mapping]
"""As rows have it: a text; or messages, a last one of the assistant being the start of the answer."""
Messages = list[dict[str, str]]
"""What the judge reads."""


@dataclass(frozen=True)
class Grade:
    """A question about one completion."""

    ask: Callable[[str, str], str]
    """Prompt and completion to the question."""
    read: Callable[[str], float | None]
    """The judge's answer to a number; None where there is none in it."""
    meaning: str
    """Of the number."""


def compare_messages(question: str, first: tuple[Prompt, str], second: tuple[Prompt, str]) -> Messages:
    """Returns what asks a judge which of two completions, shown as A and B, is better.

    Args:
      question: a key of `COMPARISONS`.
      first: prompt and completion. In later turns of a chat the two prompts have different answers in
        them; then both conversations are shown.
    """
    task, asked, named = COMPARISONS[question]
    (prompt_a, a), (prompt_b, b) = _texts(*first), _texts(*second)
    if prompt_a == prompt_b:
        parts = [(asked, prompt_a), (f"{named}_A", a), (f"{named}_B", b)]
    else:
        parts = [(f"{asked}_A", prompt_a), (f"{named}_A", a), (f"{asked}_B", prompt_b), (f"{named}_B", b)]
    return _user("\n\n".join([task, *(_tagged(*part) for part in parts), _COMPARE]))


def grade_messages(question: str, prompt: Prompt, completion: str) -> Messages:
    """Returns what asks a judge about one completion; `question` is a key of `GRADES`."""
    return _user(GRADES[question].ask(*_texts(prompt, completion)))


def read_preference(answer: str) -> float | None:
    """Returns the share that goes to A: 1, 0, ½ for a tie; None if the answer has not exactly one verdict.

    >>> read_preference("B leaves out the end. [[A]]"), read_preference("[[A]] or [[B]]")
    (1.0, None)
    """
    verdicts = set(re.findall(r"\[\[\s*(a|b|c|tie)\s*\]\]", _said(answer)))
    if not verdicts:
        verdicts = {_bare(answer)}
    return _PREFERENCES.get(verdicts.pop()) if len(verdicts) == 1 else None


def read_yes_no(answer: str) -> float | None:
    """Returns 1 for yes and 0 for no, in brackets or as the first word; None for anything else.

    >>> read_yes_no("No, it only says it in other words."), read_yes_no("[[yes]]"), read_yes_no("Perhaps")
    (0.0, 1.0, None)
    """
    said = _said(answer)
    verdicts = set(re.findall(r"\[\[\s*(yes|no)\s*\]\]", said) or re.findall(r"\A\W*(yes|no)\b", said))
    return {"yes": 1.0, "no": 0.0}[verdicts.pop()] if len(verdicts) == 1 else None


def read_rating(answer: str) -> float | None:
    """Returns the rating n of `[[n]]`, from 1 to 10; None if there is not exactly one.

    >>> read_rating("Clear and right. Rating: [[8]]"), read_rating("[[11]]"), read_rating("eight")
    (8.0, None, None)
    """
    ratings = {
        float(n) for n in re.findall(r"\[\[\s*([0-9]{1,2}(?:\.[0-9]+)?)(?:\s*/\s*10)?\s*\]\]", _said(answer))
    }
    rating = ratings.pop() if len(ratings) == 1 else None
    return rating if rating is not None and 1 <= rating <= 10 else None


_PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5, "c": 0.5}
"""C is what judges trained on others' instructions say for a tie."""


def _said(answer: str) -> str:
    """Returns the answer in small letters, without the thoughts of models that show theirs."""
    rest = answer.rpartition("</think>")[2]
    return "" if "<think>" in rest else rest.lower()  # it never came to an answer


def _bare(answer: str) -> str:
    return _said(answer).strip(" \t\r\n.*`'\"[]()")


def _texts(prompt: Prompt, completion: str) -> tuple[str, str]:
    """Returns prompt and completion as texts; the start of an answer is part of the answer."""
    if isinstance(prompt, str):
        return prompt, completion
    *before, last = prompt
    if last["role"] == "assistant":
        completion = last["content"] + completion
    else:
        before.append(last)
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in before), completion


def _tagged(name: str, text: str) -> str:
    return f"<{name}>\n{text.strip()}\n</{name}>"


def _user(text: str) -> Messages:
    # One message of the user: chat templates without a system role take it, too.
    return [{"role": "user", "content": text}]


_SUMMARY = """\
Below are a text and two summaries of it. Which summary is better? A good summary gives the points that \
matter most, leaves out what matters little, says nothing that is not in the text, and reads well."""
_CHAT = """\
Below is what a language model was asked, and two answers, A and B. Which answer is better? Judge how well \
each does what was asked: whether it is correct, relevant, complete, clear and safe. The order in which \
they are shown means nothing, and an answer is not better for being longer."""
_COMPARE = """\
Compare them in one sentence. Then, on a line of its own, write your verdict: [[A]] if A is better, [[B]] if \
B is better, or [[tie]] if you cannot tell them apart in quality."""
COMPARISONS = {
    "summary": (_SUMMARY, "text", "summary"),
    "chat": (_CHAT, "asked", "answer"),
}
"""Question -> the task, what the prompt is called, what the completions are called."""
_HALLUCINATION = """\
A source was rewritten. A faithful rewrite may leave things out, reorder them or say them in other words, but \
it makes no point and states no fact that is not in the source. Does the rewrite contain anything additional? \
Answer with one word, yes or no."""
_EXAMPLES = (
    (
        "Con: School uniforms cost families money.",
        "Families have to pay for school uniforms, which is a disadvantage.",
        "no",
    ),
    (
        "Pro: A shorter working week leaves time for family.",
        "With a shorter working week people have time for their families, and studies show that they fall "
        "ill less often.",
        "yes",
    ),
    (
        "Pro: Trams are quiet. Con: Tracks are expensive to build.",
        "Trams make little noise.",
        "no",
    ),
    (
        "name[The Old Mill], food[Italian], area[riverside]",
        "The Old Mill is a cheap Italian restaurant by the river.",
        "yes",
    ),
    (
        "Con: Zoos keep animals in small spaces.",
        "Zoos keep animals in small spaces. They also separate mothers from their young.",
        "yes",
    ),
    (
        "name[Luca's], food[pizza], customer rating[5 out of 5]",
        "People give Luca's, a place for pizza, the best rating: 5 out of 5.",
        "no",
    ),
)
"""Source, rewrite, whether it says more."""


def _ask_hallucination(source: str, rewrite: str) -> str:
    shown = [_example(*example) for example in _EXAMPLES]
    return "\n\n".join([_HALLUCINATION, *shown, _example(source, rewrite, "").rstrip()])


def _example(source: str, rewrite: str, answer: str) -> str:
    return f"{_tagged('source', source)}\n{_tagged('rewrite', rewrite)}\nAdditional: {answer}"


_RATING = """\
Below is what a language model was asked, and its answer. Judge how good the answer is: how helpful, \
relevant, accurate, deep, creative and detailed. Explain your judgement in two or three sentences. Then, on a \
line of its own, rate the answer with a whole number from 1 (useless) to 10 (could not be better) between \
double brackets, as in "Rating: [[n]]"."""


def _ask_rating(prompt: str, answer: str) -> str:
    return "\n\n".join([_RATING, _tagged("asked", prompt), _tagged("answer", answer)])


GRADES = {
    "hallucination": Grade(
        _ask_hallucination, read_yes_no, "1 if it says what its prompt does not, else 0: the mean is a rate"
    ),
    "mt-bench": Grade(_ask_rating, read_rating, "quality from 1 to 10"),
}
"""Question -> how it is asked and read."""
