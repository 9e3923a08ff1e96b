"""An alignment instruction: what an aligned model alone is told beside the task.

References: Huang et al. 2024, DeAL, arXiv:2402.06147, §3 (start-state adaptation).
"""

from collections.abc import Mapping, Sequence

TASK = "{prompt}"
"""Where a template has the task."""


def instructed(
    instruction: str | None, text: str | None, messages: Sequence[Mapping] | None
) -> tuple[str | None, tuple[Mapping, ...] | None]:
    """Returns a prompt with an instruction: its text, or its messages.

    With {prompt} in it, the instruction takes the place of the text, or of the last message of the user, which it
    contains. Without, it comes before the text and a blank line; in a chat it is the system message, or the beginning
    of the one there is.

    >>> instructed("Be brief. {prompt} Thanks!", "Why?", None)
    ('Be brief. Why? Thanks!', None)
    >>> instructed("Be brief.", None, [{"role": "user", "content": "Why?"}])[1][0]
    {'role': 'system', 'content': 'Be brief.'}
    """
    if instruction is None:
        return text, None if messages is None else tuple(messages)
    if messages is None:
        if TASK in instruction:
            return instruction.replace(TASK, text), None
        return f"{instruction}\n\n{text}", None
    said = list(messages)
    if TASK in instruction:
        last = max((n for n, each in enumerate(said) if each["role"] == "user"), default=len(said) - 1)
        said[last] = {**said[last], "content": instruction.replace(TASK, said[last]["content"])}
    elif said[0]["role"] == "system":
        said[0] = {**said[0], "content": f"{instruction}\n\n{said[0]['content']}"}
    else:
        said.insert(0, {"role": "system", "content": instruction})
    return None, tuple(said)
