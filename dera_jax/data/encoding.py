"""Prompts as token ids: what each model reads of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.common.usable import Dropped, Unusable, check_text, keep_usable
from dera_jax.data.buckets import SMALLEST_BUCKET, bucket_length, padded_length
from dera_jax.data.instructions import instructed
from dera_jax.data.prompts import Prompt
from dera_jax.data.tokens import encode_prompt
from dera_jax.data.turn_ends import tell, turn_ends
from dera_jax.policies.policy import Policy


class DoesNotFit(Unusable):
    """A prompt is too long for a model's context."""

    def __init__(self, detail: str, tokens: int, new: int, context: int):
        super().__init__("prompt too long", detail)
        self.tokens, self.new, self.context = tokens, new, context
        """Of the prompt, those that were to follow, and how many there is room for."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as each model reads it."""

    prompt: Prompt
    tokens: tuple[tuple[int, ...], ...]
    """Ids, for each model."""
    start_tokens: tuple[int | None, ...] = ()
    """What each model's decoder begins with, None where it continues the prompt. Empty: all of them do."""
    # Not in its `repr`, by which trainings know their prompts: those of older versions go on.
    turn_ends: tuple[int, ...] = field(default=(), repr=False)
    """What ends the answer besides EOS: of chats, the tokens that close turns in their templates."""

    @property
    def parts(self) -> tuple[tuple[Sequence[int], int], ...]:
        """What each model prefills, and the token it is fed first."""
        start_tokens = self.start_tokens or (None,) * len(self.tokens)
        return tuple(map(models.split_prompt, start_tokens, self.tokens))

    @property
    def buckets(self) -> tuple[int, ...]:
        """Slots that each model prefills; encoders, whose batches hold prompts of one bucket, have fewer kinds."""
        starts = self.start_tokens or (None,) * len(self.tokens)
        lengths = [len(context) for context, _ in self.parts]
        return tuple(
            bucket_length(length) if start is not None else max(SMALLEST_BUCKET, padded_length(length))
            for start, length in zip(starts, lengths, strict=True)
        )

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots that the prompt takes in each model's cache: none where an encoder has read it."""
        starts = self.start_tokens or (None,) * len(self.tokens)
        parts = zip(starts, self.parts, strict=True)
        return tuple(len(context) if start is None else 0 for start, (context, _) in parts)

    @property
    def id(self) -> int | str:
        """The prompt's id."""
        return self.prompt.prompt_id


def encode_prompts(
    policies: Sequence[Policy], prompts: Sequence[Prompt], max_new_tokens: int
) -> list[EncodedPrompt]:
    """Returns the first turn of prompts as ids.

    All models read the same text, through the aligned model's chat template or else the reference's,
    unless a policy has a `template` or an `instruction` of its own, or the prompt a `contrast`, which the
    reference reads.

    Raises:
      ValueError: an empty prompt, or one too long for a model's context; with its id.
    """

    def encode(prompt: Prompt) -> EncodedPrompt:
        try:
            return encode_turn(policies, prompt, (), max_new_tokens)
        except Unusable as why:
            raise ValueError(f"prompt {prompt.prompt_id!r}: {why}") from None

    return list(map(encode, prompts))


def encode_usable(
    policies: Sequence[Policy], prompts: Sequence[Prompt], max_new_tokens: int
) -> tuple[list[Prompt], list[EncodedPrompt], Dropped]:
    """Returns the prompts that the models can read, those as ids, and what became of the others.

    Raises:
      ValueError: none of them fits.
    """

    def use(prompt: Prompt) -> tuple[Prompt, EncodedPrompt]:
        return prompt, encode_turn(policies, prompt, (), max_new_tokens)

    if not prompts:
        return [], [], Dropped()
    kept, dropped = keep_usable(prompts, use, lambda prompt: prompt.where or f"prompt {prompt.prompt_id!r}")
    return [prompt for prompt, _ in kept], [encoded for _, encoded in kept], dropped


def encode_turn(
    policies: Sequence[Policy], prompt: Prompt, answers: Sequence[str], max_new_tokens: int
) -> EncodedPrompt:
    """Returns what a prompt asks after the `answers` to its turns before.

    Raises:
      DoesNotFit: it is too long for a model's context.
      Unusable: it has no tokens, or half of a character in its text or id.
      ValueError: a chat template refuses it.
    """
    check_text(str(prompt.prompt_id))
    asked = prompt.at_turn(answers)
    templated = next((p for p in reversed(policies) if p.tokenizer.chat_template), policies[-1])
    tokens: list[tuple[int, ...]] = []
    ends: set[int] = set()
    for policy in policies:
        reader = policy if policy.template is not None else templated
        read = asked.contrasted if policy.reads_contrast else asked
        try:
            ids = encode_prompt(
                reader.tokenizer,
                *instructed(policy.instruction, read.text, read.messages),
                read.prefix,
                template=policy.template,
                reader=policy.config.encoder_decoder,
                variables=asked.variables,
            )
        except Unusable:
            raise
        except ValueError as error:
            raise ValueError(f"prompt {prompt.prompt_id!r}: {error}") from error
        _check_fits(policy, prompt, ids, max_new_tokens)
        tokens.append(tuple(ids))
        if asked.messages is not None:
            ends.update(turn_ends(reader.tokenizer, policy.template))
    new_ends = tuple(sorted(ends.difference(*(policy.eos_ids for policy in policies))))
    tell(policies[-1].tokenizer, new_ends, policies[-1].name)
    starts = tuple(policy.config.start_token for policy in policies)
    return EncodedPrompt(asked, tuple(tokens), starts, new_ends)


def before(policy: Policy, tokens: Sequence[int]) -> Sequence[int]:
    """Returns the tokens of a prompt that its completion continues: none where an encoder has read them."""
    return () if policy.config.encoder_decoder else tokens


def _check_fits(policy: Policy, prompt: Prompt, ids: Sequence[int], max_new_tokens: int) -> None:
    context, vocab = policy.config.max_positions, policy.config.vocab_size
    # The last new token is drawn and never read.
    if len(ids) + max(0, max_new_tokens - 1) > context:
        left = context - len(ids) + 1
        raise DoesNotFit(
            f"{len(ids)} tokens and {max_new_tokens} new ones do not fit the context of "
            f"{shown(policy.name, 200)} ({context} tokens)"
            + (f"; it has room for --max-new-tokens={left}" if left > 0 and max_new_tokens else ""),
            len(ids),
            max_new_tokens,
            context,
        )
    if max(ids) >= vocab:
        raise ValueError(
            f"prompt {prompt.prompt_id!r}: token {max(ids)} is beyond the {vocab} words of {shown(policy.name, 200)}"
        )


def prompt_tokens(prompt: EncodedPrompt) -> list:
    """Returns the ids that the models read; a list for each where they differ."""
    each = [list(ids) for ids in prompt.tokens]
    return each[0] if all(ids == each[0] for ids in each) else each
