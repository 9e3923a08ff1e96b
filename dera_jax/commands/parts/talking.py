"""A conversation in the terminal, at a strength that can be changed between two answers."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from dera_jax.commands.parts.lines import each_line
from dera_jax.commands.process import interrupts

COLOURS = ((0.05, None), (0.2, 229), (0.5, 222), (1.0, 215), (math.inf, 208))
"""Backgrounds of tokens (of 256 colours) by their KL: up to so many nats, none below the first."""
HELP = (
    "/lambda 1.5: the strength; /both 0 1: two answers, the first goes on; /reset: a new conversation; /quit"
)


def talk(args, policies, decode, rule, draw, lambdas: tuple, parsed: Callable[[str], tuple]) -> None:
    """Has a conversation with the models that a command has loaded.

    Raises:
      ValueError: several samples, more than two strengths, or a draw that cannot be shown word by word.
    """
    from dera_jax.data.encoding import encode_prompts
    from dera_jax.data.prompts import as_prompts, with_settings
    from dera_jax.decoding.complete import is_plain
    from dera_jax.decoding.request import Request
    from dera_jax.decoding.streaming import stream

    if not is_plain(draw) or args.num_samples != 1:
        raise ValueError(
            "a conversation: expected --draw=mixture and --num-samples=1; --prompt has the others"
        )
    if len(lambdas) > 2:
        raise ValueError(f"a conversation: expected one strength, or two, found {len(lambdas)}")

    def pieces(messages: list[dict], strength: tuple):
        (asked,) = as_prompts([{"messages": messages}])
        asked = with_settings(asked, args.chat_template_kwargs)
        (prompt,) = encode_prompts(policies, [asked], decode.max_new_tokens)
        return stream(policies, Request(prompt, len(messages), strength), decode, rule, draw)

    Conversation(pieces, lambdas, parsed).run()


class Conversation:
    """What has been said, and the strengths that the next message is answered at."""

    def __init__(
        self,
        pieces: Callable[[list[dict], tuple], Iterator],
        strengths: tuple,
        parsed: Callable[[str], tuple],
    ):
        """Begins with nothing said.

        Args:
          pieces: of an answer to messages at a strength; see `decoding.streaming`.
          parsed: text to strengths.
        """
        self.pieces, self.strengths, self.parsed = pieces, strengths, parsed
        self.messages: list[dict] = []
        self.colours = (
            sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

    def run(self) -> None:
        """Answers each line of standard input until it ends or says /quit."""
        print(HELP, file=sys.stderr)
        each_line(self.take)

    def take(self, line: str) -> None:
        """Does what a line says, or answers it."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self.messages = []
        elif command == "/lambda":
            self.strengths = self._strengths(rest, 1)
        elif command == "/both":
            self.strengths = self._strengths(",".join(rest.split()), 2)
        elif line.startswith("/"):
            raise ValueError(f"unknown command {command!r:.40}; expected {HELP}")
        elif line:
            self._answer(line)

    def _strengths(self, text: str, count: int) -> tuple:
        found = self.parsed(text.strip())
        if len(found) != count:
            raise ValueError(f"expected {count} strength{'s' * (count > 1)}, found {len(found)}")
        return found

    def _answer(self, line: str) -> None:
        asked = [*self.messages, {"role": "user", "content": line}]
        said = [self._shown(asked, strength) for strength in self.strengths]
        if said[0]:
            self.messages = [*asked, {"role": "assistant", "content": said[0]}]

    def _shown(self, asked: Sequence[dict], strength: tuple) -> str:
        """Prints an answer as it is drawn, and returns it; Ctrl-C ends it where it is."""
        from dera_jax.strengths import format_strength

        text, tokens, kl, start, stopped = "", 0, 0.0, time.perf_counter(), ""
        with interrupts.raised():
            try:
                for piece in self.pieces(asked, strength):
                    text, tokens, kl = text + piece.text, tokens + 1, kl + piece.kl_to_reference
                    print(self._coloured(piece.text, piece.kl_to_reference), end="", flush=True)
            except KeyboardInterrupt:
                stopped = "stopped, "
        pace = tokens / max(1e-9, time.perf_counter() - start)
        told = f"λ = {format_strength(strength)}: {tokens} tokens, KL {kl:.2f} nats, {pace:.1f} tokens/s"
        print(f"\n[{stopped}{told}]", flush=True)
        return text

    def _coloured(self, text: str, kl: float) -> str:
        """Returns the text of a token, in the colour of its KL where the terminal has colours."""
        # A model may draw any character, those that steer a terminal too.
        text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
        colour = next(colour for most, colour in COLOURS if kl < most)
        if not (self.colours and colour and text):
            return text
        return f"\x1b[48;5;{colour};38;5;16m{text}\x1b[0m"
