"""What records give to read and to write, against TRL's own reading and on Anthropic's transcripts."""

import pytest

from dera_jax.common.usable import Unusable
from dera_jax.data.fields import ASSISTANT, read_pair
from dera_jax.data.records import Record, load_records

SUBSETS = ["harmless", "helpful"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def record(**fields):
    return Record(fields, "f:1", 0)


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl")


@pytest.mark.data("hh_rlhf")
def test_transcripts_split_where_trl_splits_them(data):
    assert split_transcripts(data / "hh_rlhf") == (4666, 4656, 6)


def test_invented_transcripts_split_where_trl_splits_them(stand_ins):
    assert split_transcripts(stand_ins / "hh_rlhf") == (400, 384, 0)


def split_transcripts(folder):
    """Returns how many pairs there are, how many are used, and how many of those part before the last turn.

    The data set that TRL's authors publish ends the prompt at chosen's last turn of the assistant.
    """
    rows = [row for name in SUBSETS for row in load_records(str(folder / f"{name}-base.test.jsonl.gz"))]
    same = earlier = 0
    for row in rows:
        try:
            prompt, (chosen, rejected) = read_pair(row)
        except Unusable:
            continue
        assert (prompt + chosen, prompt + rejected) == (row.fields["chosen"], row.fields["rejected"])
        whole = row.fields["chosen"]
        theirs = whole[: whole.rfind(ASSISTANT) + len(ASSISTANT)]
        if row.fields["rejected"].startswith(theirs):
            # Or rejected goes on where chosen ends.
            assert prompt == theirs
            same += 1
        else:
            assert theirs.startswith(prompt) and ASSISTANT in chosen
            earlier += 1
    return len(rows), same + earlier, earlier


@pytest.mark.parametrize(
    "chosen, rejected",
    [
        ("The sky is blue.", "The sky is green."),
        ("Q: Is it?\nA: yes", "Q: Is it?\nA: no"),
        ("Q: Is it?\nyes", "Q: Is it?\nno"),
        ([user("Hi"), assistant("Yes.")], [user("Hi"), assistant("No.")]),
        (
            [user("Hi"), assistant("Yo."), user("So?"), assistant("Yes.")],
            [user("Hi"), assistant("Yo."), user("So?"), assistant("No."), user("Why?"), assistant("Well.")],
        ),
    ],
)
def test_the_prompt_that_both_begin_with_is_trls(trl, chosen, rejected):
    fields = {"chosen": chosen, "rejected": rejected}
    theirs = trl.extract_prompt(fields)
    prompt, completions = read_pair(record(**fields))
    kind = str if isinstance(chosen, str) else list
    assert {
        "prompt": kind(prompt),
        "chosen": kind(completions[0]),
        "rejected": kind(completions[1]),
    } == theirs


def test_a_prompt_that_chats_say_once_more_is_left(trl):
    """As in UltraFeedback: `prompt` is a text, the chats hold it."""
    chats = {name: [user("Hi"), assistant(name)] for name in ("chosen", "rejected")}
    theirs = trl.data_utils.maybe_extract_prompt({"prompt": "Hi", **chats})
    prompt, (chosen, rejected) = read_pair(record(prompt="Hi", **chats))
    assert theirs == {"prompt": list(prompt), "chosen": list(chosen), "rejected": list(rejected)}


def test_the_prompt_of_texts_ends_between_words():
    def split(chosen, rejected):
        prompt, completions = read_pair(record(chosen=chosen, rejected=rejected))
        assert (prompt + completions[0], prompt + completions[1]) == (chosen, rejected)
        return prompt, *completions

    assert split("It is blue", "It is black") == ("It is", " blue", " black")
    assert split("It is blue", "It is blue now") == ("It is", " blue", " blue now")
    assert split("A:\n\nyes", "A:\nno") == ("A:", "\n\nyes", "\nno")
    assert split("我喜欢猫", "我喜欢狗") == ("我喜欢", "猫", "狗")
    human, answer = "\n\nHuman: a b", "\n\nAssistant:"
    # The transcripts part in the second question: the answer before it is the last that both begin.
    one = f"{human}{answer} yes\n\nHuman: c{answer} d"
    assert split(one, f"{human}{answer} yes\n\nHuman: e{answer} f")[0] == human + answer
