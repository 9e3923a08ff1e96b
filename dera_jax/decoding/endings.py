"""Where a completion ends: at EOS, at a stop text, or at its longest length."""

from collections.abc import Collection, Sequence
from copy import copy
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from dera_jax.data.tokens import REPLACEMENT, decode_completion


class End(NamedTuple):
    """How a completion has ended."""

    count: int
    """Tokens kept, EOS and those that spell the stop text included."""
    reason: str
    """eos, stop or length."""
    text: str
    """Without EOS and from the stop text on."""


class Endings:
    """What ends completions."""

    def __init__(
        self,
        reader: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        stop: Sequence[str],
        max_new_tokens: int,
    ):
        """Keeps what ends a completion.

        Args:
          reader: turns tokens into text.
          stop: texts, with special tokens in them or not; the one that is whole first ends the completion.
        """
        self._reader, self.find_eos_ids, self._stop = reader, frozenset(eos_ids), tuple(stop)
        self._limit, self._longest = max_new_tokens, max(map(len, stop), default=0)
        added = reader.added_tokens_decoder.items()
        self._special = {i for i, token in added if token.special}.union(reader.all_special_ids)

    def but(self, stop: Sequence[str], max_new_tokens: int) -> "Endings":
        """Returns the endings of completions with other stop texts or another longest length."""
        other = copy(self)
        other._stop, other._limit, other._longest = (
            tuple(stop),
            max_new_tokens,
            max(map(len, stop), default=0),
        )
        return other

    def find(
        self, prompt: Sequence[int], tokens: list[int], searched: int, more_eos: Collection[int] = ()
    ) -> End | None:
        """Returns how a completion has ended, None if it goes on.

        Args:
          prompt: tokens that it continues.
          tokens: drawn so far.
          searched: how many of them were there, without an end, when this was asked before.
          more_eos: what ends this completion as EOS does.
        """
        limit = min(len(tokens), self._limit)
        eos_ids = self.find_eos_ids.union(more_eos) if more_eos else self.find_eos_ids
        eos = next((i for i in range(searched, limit) if tokens[i] in eos_ids), None)
        if self._stop and (end := self._find_stop(prompt, tokens[: limit if eos is None else eos], searched)):
            return end
        if eos is not None:
            return End(eos + 1, "eos", self._text(prompt, tokens[:eos]))
        if limit == self._limit:
            return End(limit, "length", self._text(prompt, tokens[:limit]))
        return None

    def cut(self, prompt: Sequence[int], tokens: list[int]) -> End:
        """Returns how a completion ends that goes on but is cut here."""
        return End(len(tokens), "length", self._text(prompt, tokens))

    def settled(self, prompt: Sequence[int], tokens: list[int]) -> str:
        """Returns the beginning of a completion's text that stays, whatever its next tokens are.

        What may be half a character, or the beginning of a stop text, is left out.
        """
        count = self._beyond_doubt(prompt, tokens) if self._stop else len(tokens)
        return self._text(prompt, tokens[:count]).rstrip(REPLACEMENT)

    def _beyond_doubt(self, prompt: Sequence[int], tokens: list[int]) -> int:
        """Returns how many tokens lie before what a stop text may begin in."""
        start = self._reach(prompt, tokens)
        known = [*prompt, *tokens[:start]]

        def said(count: int) -> str:
            return self._text(known, tokens[start:count], special=True).rstrip(REPLACEMENT)

        text = said(len(tokens))
        doubtful = range(min(self._longest - 1, len(text)), 0, -1)
        held = next((n for n in doubtful if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
        if not held:
            return len(tokens)
        counts = range(len(tokens) - 1, start, -1)
        return next((n for n in counts if len(said(n)) <= len(text) - held), start)

    def _find_stop(self, prompt: Sequence[int], tokens: list[int], searched: int) -> End | None:
        """Returns the end at the stop text that is whole with the fewest tokens.

        Only the end of the text is decoded: what a stop text that is whole by now can begin in. Special
        tokens are in it, as in what transformers and lm-eval look for stop texts in.
        """
        start = self._reach(prompt, tokens[:searched])
        known = [*prompt, *tokens[:start]]

        def said(count: int) -> str:
            return self._text(known, tokens[start:count], special=True)

        whole = said(len(tokens))
        # Bytes that are no character may have taken a stop text along that was there before them.
        if self._place(whole) is None and REPLACEMENT not in whole:
            return None
        counts = range(searched + 1, len(tokens) + 1)
        count = next((n for n in counts if self._place(said(n)) is not None), None)
        return None if count is None else End(count, "stop", self._before_stop(prompt, tokens[:count]))

    def _before_stop(self, prompt: Sequence[int], tokens: list[int]) -> str:
        """Returns the text before the stop text that is whole with the last token, without special tokens."""
        text = self._text(prompt, tokens, special=True)
        place = self._place(text)
        if place is None or not self._special.intersection(tokens):
            return self._text(prompt, tokens) if place is None else text[:place]

        def said(count: int) -> str:
            return self._text(prompt, tokens[:count], special=True)

        # Whole tokens before it, and the part of the next one that is.
        kept = next(
            n for n in reversed(range(len(tokens))) if len(said(n)) <= place and text.startswith(said(n))
        )
        rest = "" if tokens[kept] in self._special else text[len(said(kept)) : place]
        return self._text(prompt, tokens[:kept]) + rest

    def _place(self, text: str) -> int | None:
        """Returns where the first stop text in `text` begins; None if there is none."""
        return min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)

    def _reach(self, prompt: Sequence[int], tokens: list[int]) -> int:
        """Returns from which token on the text is as long as the longest stop text; some tokens have none."""
        start, step = len(tokens), 8
        while (
            start
            and len(self._text([*prompt, *tokens[:start]], tokens[start:], special=True)) < self._longest
        ):
            start, step = max(0, start - step), 2 * step
        return start

    def _text(self, prompt: Sequence[int], tokens: Sequence[int], special: bool = False) -> str:
        return decode_completion(self._reader, prompt, tokens, special=special)
