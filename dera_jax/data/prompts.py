"""Prompts: what is asked of the policies, from records, each with a stable id."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dera_jax.common.shown import shown
from dera_jax.common.usable import Dropped, Unusable, check_messages, check_text, keep_usable
from dera_jax.data.columns import usual
from dera_jax.data.fields import read_pair
from dera_jax.data.messages import template_variables, with_plain_content
from dera_jax.data.records import Record, json_kind, load_records
from dera_jax.strengths import format_strength, turn_strengths


@dataclass(frozen=True)
class Prompt:
    """What is asked of the policies: exactly one of `text` and `messages`."""

    prompt_id: int | str
    """Names the prompt in rows and seeds its draws."""
    text: str | None = None
    """Raw text, given to the tokenizer as it is."""
    messages: tuple[dict, ...] | None = None
    """With `role` and `content`, for the chat template. Where a user's message is followed by another of
    the user, or ends the list, the policies answer: that many turns it has."""
    lambda_: float | str | tuple[float | str, ...] | None = None
    """The prompt's own strength, or one per turn; of several aligned models a text, `0.5+0.25`."""
    prefix: str | tuple[str, ...] = ""
    """Start of every answer, which the policies continue, or one per turn."""
    columns: dict = field(default_factory=dict)
    """Every other field, handed to rewards."""
    # Not in its `repr`, by which trainings know their prompts.
    contrast: str | tuple[dict, ...] | None = field(default=None, repr=False)
    """What the reference reads in its place, of the same kind: a text, or messages. Trainings do not read it."""
    where: str = field(default="", repr=False, compare=False)
    """File and line, for errors."""

    @classmethod
    def of(cls, value: object, number: int = 0, where: str | None = None) -> "Prompt":
        """Returns the prompt that a text, a record's fields or a prompt stand for.

        Args:
          value: a string is raw text.
          number: the id of a prompt without `id`.
          where: file and line, for errors.

        Raises:
          Unusable: a field is empty, or its text cannot be encoded.
          ValueError: a field is missing or of the wrong kind.

        >>> Prompt.of({"prompt": "Once", "topic": "tales"}, number=3)
        Prompt(prompt_id=3, text='Once', messages=None, lambda_=None, prefix='', columns={'topic': 'tales'})
        """
        where = where or f"prompt {number}"
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a string or an object with fields, found {json_kind(value)}")
        # Tables fill the fields a row does not have with null.
        columns = usual(value, where, asks=True)
        known = {name: columns.pop(name, None) for name in FIELDS}
        if known["id"] is None and "turns" in value:  # MT-Bench
            known["id"] = columns.pop("question_id", None)
        asked = [name for name in ASKED if known[name] is not None]
        if not asked and {"chosen", "rejected"} <= columns.keys():
            asked = [_common_prompt(known, columns, where)]
        if len(asked) != 1:
            found = shown(", ".join(map(str, value)) or "none", 200)
            raise ValueError(
                f"{where}: expected one of the fields 'prompt', 'messages' and 'turns', found {found}"
            )
        chat = "prompt" if isinstance(known["prompt"], (list, tuple)) else "messages"  # "prompt": TRL's chats
        prompt = cls(
            prompt_id=number if known["id"] is None else _id(known["id"], where),
            text=_text(known["prompt"], "prompt", where)
            if asked == ["prompt"] and chat != "prompt"
            else None,
            messages=_asked_messages(known, chat, where),
            lambda_=None if known["lambda"] is None else _lambda(known["lambda"], where),
            prefix=_prefix(known["prefix"], where),
            columns=columns,
            contrast=read_contrast(known["contrast"], where),
            where=where,
        )
        _ = prompt.variables  # which are checked here
        _check_contrast(prompt)
        for name, given in (("lambda", prompt.lambda_), ("prefix", prompt.prefix)):
            if isinstance(given, tuple) and len(given) != prompt.num_turns:
                raise ValueError(
                    f"{where}: {name}: expected one for each of {prompt.num_turns} turns, found {len(given)}"
                )
        return prompt

    @property
    def contrasted(self) -> "Prompt":
        """What the reference reads: the prompt with its contrast in its place, if there is one."""
        if self.contrast is None:
            return self
        text, messages = (self.contrast, None) if isinstance(self.contrast, str) else (None, self.contrast)
        return replace(self, text=text, messages=messages, contrast=None)

    @property
    def num_turns(self) -> int:
        """How often the policies answer."""
        return 1 if self.messages is None else len(_answered(self.messages))

    @property
    def variables(self) -> dict:
        """What the chat template reads beside messages: of the columns `tools` and `chat_template_kwargs`."""
        return {} if self.messages is None else template_variables(self.columns, self.where or "prompt")

    def at_turn(self, answers: Sequence[str]) -> "Prompt":
        """Returns what is asked after the `answers` to the turns before.

        >>> chat = Prompt.of({"turns": ["Hi", "Why?"]})
        >>> [message["content"] for message in chat.at_turn(["Hello."]).messages]
        ['Hi', 'Hello.', 'Why?']
        """
        turn = len(answers)
        prefixes = self.prefix if isinstance(self.prefix, tuple) else (self.prefix,) * self.num_turns
        if self.messages is None:
            return replace(self, prefix=prefixes[0])
        messages, ends = list(self.messages), _answered(self.messages)
        said = messages[: ends[turn] + 1]
        # From the last on, so that the places before stay where they are.
        for end, prefix, answer in reversed(list(zip(ends, prefixes, answers, strict=False))):
            said.insert(end + 1, {"role": "assistant", "content": prefix + answer})
        return replace(self, messages=tuple(said), prefix=prefixes[turn])


def prompt_text(prompt: Prompt) -> str | list[dict]:
    """Returns what a row keeps of its prompt, and rewards see: text or messages, with the answer's start."""
    if prompt.messages is None:
        return prompt.text + prompt.prefix
    return [*prompt.messages, *([{"role": "assistant", "content": prompt.prefix}] if prompt.prefix else [])]


ASKED = ("prompt", "messages", "turns")
"""Fields that ask."""
FIELDS = ("id", *ASKED, "lambda", "prefix", "contrast")


def _common_prompt(known: dict, columns: Mapping, where: str) -> str:
    """Adds the prompt that both answers of a pair begin with to the known fields; returns its field's name."""
    prompt = read_pair(Record(dict(columns), where, 0)).prompt
    name = "prompt" if isinstance(prompt, str) else "messages"
    known[name] = prompt
    return name


def _answered(messages: Sequence[Mapping]) -> list[int]:
    """Returns the positions of the messages that the policies answer."""
    last = len(messages) - 1
    return [
        n for n, message in enumerate(messages)
        if n == last or message["role"] == messages[n + 1]["role"] == "user"
    ]  # fmt: skip


def load_prompts(spec: str, limit: int | None = None) -> list[Prompt]:
    """Returns the first `limit` prompts of `spec`, or all; there may be fewer.

    Those that cannot be used (an empty text) are left out with a warning.

    Args:
      spec: `FILE.jsonl` (or `.jsonl.gz`, `.json`, `.csv`, `.parquet`, `.txt`), `hf:org/set[:split]`,
        `tfds:name[:split]`, or a shipped name, `toy` or `chat`. Of preference pairs the prompts are taken.
      limit: ≥ 1; None is all.

    Raises:
      ValueError: no such data, a broken line, or two prompts with one id.
    """
    prompts, dropped = read_prompts(spec, limit)
    warn_of(dropped, spec, len(prompts))
    return prompts


def read_prompts(
    spec: str, limit: int | None = None, settings: Mapping | None = None
) -> tuple[list[Prompt], Dropped]:
    """Returns what `load_prompts` does, and what became of the other records.

    Args:
      settings: of the chat template, for chats that do not say otherwise.
    """
    prompts, dropped = _usable([(r.fields, r.number, r.where) for r in load_records(spec, limit)])
    return [with_settings(prompt, settings or {}) for prompt in prompts], dropped


def with_settings(prompt: Prompt, settings: Mapping) -> Prompt:
    """Returns a chat that tells its template `settings` too; they reach rewards as its own do."""
    if not settings or prompt.messages is None:
        return prompt
    told = template_variables({**prompt.columns, "tools": None}, prompt.where, settings)
    return replace(prompt, columns=prompt.columns | {"chat_template_kwargs": told})


def usable_prompts(prompts: object) -> tuple[list[Prompt], Dropped]:
    """Returns what `as_prompts` does without the prompts that cannot be used, and what became of those."""
    if isinstance(prompts, (str, Mapping, Prompt)):
        raise ValueError(f"prompts: expected a list of prompts, found {json_kind(prompts)}")
    return _usable([(value, number, f"prompt {number}") for number, value in enumerate(prompts)])


def _usable(given: Sequence[tuple[object, int, str]]) -> tuple[list[Prompt], Dropped]:
    """Returns prompts from values with their numbers and places."""
    if not given:
        return [], Dropped()
    made, dropped = keep_usable(given, lambda each: (Prompt.of(*each), each[2]), lambda each: each[2])
    _refuse_duplicates(made)
    return [prompt for prompt, _ in made], dropped


def warn_of(dropped: Dropped, source: str, used: int) -> None:
    """Warns Python code of records that were left out."""
    if dropped.count:
        warnings.warn(dropped.told(source, used).removeprefix("warning: "), stacklevel=3)


def as_prompts(prompts: object) -> list[Prompt]:
    """Returns prompts from a list of texts, objects with fields, or prompts; without `id`, the id is the position.

    Raises:
      ValueError: `prompts` is one string, or a prompt is broken or empty, or two have one id.
    """
    made, dropped = usable_prompts(prompts)
    if dropped.count:
        reason, first = next(iter(dropped.first.items()))
        raise ValueError(f"{first}: {reason}" if reason not in first else first)
    return made


def check_one_turn(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError where a prompt asks for more than one answer."""
    for prompt in prompts:
        if prompt.num_turns > 1:
            raise ValueError(f"prompt {prompt.prompt_id!r}: expected one turn, found {prompt.num_turns}")


def _refuse_duplicates(prompts: Sequence[tuple[Prompt, str]]) -> None:
    first: dict[int | str, str] = {}
    for prompt, place in prompts:
        if prompt.prompt_id in first:
            raise ValueError(
                f"{place}: id {prompt.prompt_id!r} is already taken by {first[prompt.prompt_id]}"
            )
        first[prompt.prompt_id] = place


def _id(value: object, where: str) -> int | str:
    if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "":
        check_text(str(value))
        return value
    raise ValueError(f"{where}: id: expected a whole number or a string, found {json_kind(value)}")


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name}: expected a string, found {json_kind(value)}")
    if not value:
        raise Unusable(f"{name} is empty")
    check_text(value)
    return value


def _messages(value: object, field_: str, where: str) -> tuple[dict, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: {field_}: expected a list, found {json_kind(value)}")
    if not value:
        raise Unusable(f"{field_} is empty")
    value = with_plain_content(value, f"{where}: {field_}")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: {field_}[{i}]: expected an object with 'role' and 'content'")
        for name in ("role", "content"):
            if not isinstance(message[name], str):
                found = json_kind(message[name])
                raise ValueError(f"{where}: {field_}[{i}]: {name}: expected a string, found {found}")
    if (role := value[-1]["role"]) in ("assistant", "system"):
        hint = "; the start of an answer goes in the field 'prefix'" if role == "assistant" else ""
        raise ValueError(
            f"{where}: {field_}: expected the last one to be the user's, found the {role}'s{hint}"
        )
    check_messages(value)
    return tuple(dict(message) for message in value)


def _asked_messages(known: Mapping, chat: str, where: str) -> tuple[dict, ...] | None:
    """Returns the messages of a record, in the field `chat`; those of `turns` are the user's."""
    if known["turns"] is None:
        return None if known[chat] is None else _messages(known[chat], chat, where)
    turns = known["turns"]
    if not isinstance(turns, (list, tuple)) or not turns:
        raise ValueError(f"{where}: turns: expected a list of strings, found {json_kind(turns)}")
    return tuple(
        {"role": "user", "content": _text(turn, f"turns[{n}]", where)} for n, turn in enumerate(turns)
    )


def _prefix(value: object, where: str) -> str | tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple("" if v in (None, "") else _text(v, f"prefix[{n}]", where) for n, v in enumerate(value))
    return "" if value in (None, "") else _text(value, "prefix", where)


def read_contrast(value: object, where: str) -> str | tuple[dict, ...] | None:
    """Returns a contrast, a text or messages; None where there is none.

    Raises:
      ValueError: it is of another kind, or empty; with file and line.
    """
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return _messages(value, "contrast", where)
    return _text(value, "contrast", where)


def _check_contrast(prompt: Prompt) -> None:
    """Raises ValueError where a contrast is of another kind than its prompt, or one of them has several turns."""
    if prompt.contrast is None:
        return
    asked, found = ("a text" if p.messages is None else "messages" for p in (prompt, prompt.contrasted))
    if asked != found:
        raise ValueError(f"{prompt.where}: contrast: expected {asked}, as the prompt, found {found}")
    turns = max(prompt.num_turns, prompt.contrasted.num_turns)
    if turns > 1:
        raise ValueError(f"{prompt.where}: contrast: expected one turn, found {turns}")


def _lambda(value: object, where: str) -> float | str | tuple[float | str, ...]:
    turns = tuple(
        strength[0] if len(strength) == 1 else format_strength(strength)
        for strength in turn_strengths(value, where)
    )
    return turns if isinstance(value, (list, tuple)) else turns[0]
