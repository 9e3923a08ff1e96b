"""Training data: the field's shapes against TRL's own reading, Anthropic's transcripts, tokens."""

import json
from dataclasses import replace

import pytest

from dera_jax.data.answers import encode_whole
from dera_jax.data.examples import Example, Pair, encode_examples, encode_pairs
from dera_jax.data.fields import EMPTY, EQUAL
from dera_jax.data.learned import encode_learned
from dera_jax.data.records import load_records
from dera_jax.models.t5_config import T5Config
from dera_jax.policies.tokenizers import load_tokenizer
from tests.support.t5_models import write_tokenizer
from tests.support.training_records import LONG, TURNS, assistant, record, user

BOS, EOS = 1, 2
"""Of the shipped pair."""
HEADS = TURNS.replace("{{ eos_token }}", "")
"""Without EOS."""
HH = ["hh_rlhf/harmless-base.test.jsonl.gz", "hh_rlhf/helpful-base.test.jsonl.gz"]


@pytest.fixture(scope="module")
def t5(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    write_tokenizer(folder)
    config = T5Config(32128, 8, 8, 1, 1, 1, 8)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "pad_token": "<pad>"}')
    return replace(policy, config=config, tokenizer=load_tokenizer(folder), eos_ids=(1,))


def text_of(policy, *parts):
    """Returns the text without BOS and EOS, behind which this tokenizer would write a space."""
    return policy.tokenizer.decode([token for part in parts for token in part], skip_special_tokens=True)


# Anthropic's transcripts


@pytest.mark.parametrize("name", HH)
def test_transcripts_are_read_whole(policy, stand_ins, name):
    read_transcripts(policy, stand_ins / name)


@pytest.mark.data("hh_rlhf")
@pytest.mark.parametrize("name", HH)
def test_every_transcript_is_read_whole(policy, data, name):
    read_transcripts(policy, data / name)


def read_transcripts(policy, path):
    """Compares the text that tokens decode to with that of the file, whose rows are all accounted for."""
    records = load_records(str(path))
    pairs, report = encode_pairs(policy, records, LONG)
    assert report.used == len(pairs) == len(records) - report.dropped.count and report.cut == 0
    equal = sum(r.fields["chosen"] == r.fields["rejected"] for r in records)
    blank = sum(any(r.fields[n].endswith("Assistant: ") for n in ("chosen", "rejected")) for r in records)
    assert report.dropped.reasons == {
        reason: count for reason, count in [(EMPTY, blank), (EQUAL, equal)] if count
    }
    left = iter(pairs)
    for row in records:
        chosen, rejected = row.fields["chosen"], row.fields["rejected"]
        if chosen == rejected or chosen.endswith("Assistant: ") or rejected.endswith("Assistant: "):
            continue
        pair = next(left)
        assert text_of(policy, pair.prompt).endswith("\n\nAssistant:")
        for whole, completion in ((chosen, pair.chosen), (rejected, pair.rejected)):
            assert (pair.prompt[0], completion[-1]) == (BOS, EOS)
            assert text_of(policy, pair.prompt, completion) == whole


# Against TRL


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl")


def test_chats_are_written_as_trl_writes_them(trl, chatting):
    chat = [{"role": "system", "content": "Be kind."}, user("Tell me of Lily.")]
    fields = {"prompt": chat, "chosen": [assistant("She ran.")], "rejected": [assistant("No, Tom.")]}
    theirs = trl.apply_chat_template(dict(fields), chatting.tokenizer)
    ((pair,), _) = encode_pairs(chatting, [record(**fields)], LONG)

    def ids(text):
        return tuple(chatting.tokenizer(text, add_special_tokens=False).input_ids)

    assert pair.prompt == ids(theirs["prompt"])
    for completion, name in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
        # The line break behind the end of the turn is never generated.
        assert theirs[name].endswith("</s>\n")
        assert pair.prompt + completion == ids(theirs["prompt"] + theirs[name][:-1])
    # Every other way to say the same.
    same = [
        record(prompt=chat, chosen="She ran.", rejected="No, Tom."),
        record(chosen=chat + fields["chosen"], rejected=chat + fields["rejected"]),
        record(prompt="Tell me of Lily.", chosen=chat + fields["chosen"], rejected=chat + fields["rejected"]),
    ]
    assert encode_pairs(chatting, same, LONG)[0] == [pair] * 3
    messages = [record(messages=chat + fields["chosen"]), record(prompt=chat, completion="She ran.")]
    assert encode_examples(chatting, messages, LONG)[0] == [Example(pair.prompt, pair.chosen)] * 2


def test_a_pair_is_two_labelled_examples_as_trl_unpairs_it(trl, policy):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"prompt": "Once", "chosen": " upon a time", "rejected": " there"},
        {"prompt": "One day", "chosen": ", Tom", "rejected": ", a dog"},
    ]
    unpaired = trl.unpair_preference_dataset(datasets.Dataset.from_list(rows))
    theirs, _ = encode_examples(policy, [record(**row) for row in unpaired], LONG, labelled=True)
    ours, report = encode_examples(policy, [record(**row) for row in rows], LONG, labelled=True)
    assert sorted(ours, key=str) == sorted(theirs, key=str) and report.used == 4
    assert [example.desirable for example in ours] == [True, False, True, False]
    chosen, report = encode_examples(policy, [record(**row) for row in rows], LONG)
    assert chosen == [replace(example, desirable=None) for example in ours if example.desirable]
    assert report.used == 2 and report.told("f").startswith("f: 2 used (2 the chosen completion of a pair);")


# Tokens


def test_raw_text_is_one_text_with_its_completion(policy):
    """One BOS, the space kept, EOS behind, also where the text says them itself."""
    ids = [*policy.tokenizer("Once upon a time, there was a cat.").input_ids, EOS]
    for prompt, completion in [
        ("Once upon a time", ", there was a cat."),
        ("<s>Once upon a time", ", there was a cat.</s>"),
        ("Once", " upon a time, there was a cat."),
    ]:
        ((example,), report) = encode_examples(policy, [record(prompt=prompt, completion=completion)], 64)
        assert [*example.prompt, *example.completion] == ids
        assert text_of(policy, example.prompt) == prompt.removeprefix("<s>")
        assert (report.used, report.dropped.count, report.cut) == (1, 0, 0)
    for text in (record(text="One day"), record(prompt="One day")):
        ((example,), _) = encode_examples(policy, [text], 64)
        assert example.prompt == (BOS,)
        assert [*example.prompt, *example.completion] == [*policy.tokenizer("One day").input_ids, EOS]


def test_a_template_without_an_end_gets_one_and_one_that_is_empty_is_raw_text(policy):
    chat = record(messages=[user("Hi"), assistant("Lily ran.")])
    ((example,), _) = encode_examples(replace(policy, template=HEADS), [chat], 64)
    assert text_of(policy, example.prompt) == "<user>Hi\n<assistant>"
    assert text_of(policy, example.prompt, example.completion) == "<user>Hi\n<assistant>Lily ran.\n"
    assert example.completion[-1] == EOS
    ((example,), _) = encode_examples(replace(policy, template=""), [chat], 64)
    assert text_of(policy, example.prompt) == "Hi"
    assert text_of(policy, example.prompt, example.completion) == "Hi\n\nLily ran."
    assert (example.prompt[0], example.completion[-1]) == (BOS, EOS)


def test_an_encoder_reads_the_prompt(t5):
    fields = {"prompt": "name: Aromi, food: Chinese", "completion": "Aromi is a Chinese coffee shop."}
    ((example,), _) = encode_examples(t5, [record(**fields)], 64)
    assert list(example.prompt) == t5.tokenizer(fields["prompt"]).input_ids
    assert list(example.completion) == t5.tokenizer(fields["completion"]).input_ids
    assert example.prompt[-1] == example.completion[-1] == 1
    with pytest.raises(ValueError, match=r"f:1: expected text in `prompt` and `completion`.*found a text"):
        encode_examples(t5, [record(text="Aromi")], 64)


def test_what_does_not_fit_is_counted(policy):
    prompt, completion = "Once upon a time", ", there was a cat."
    long = policy.tokenizer(prompt).input_ids
    records = [
        record(0, prompt=prompt, chosen=completion, rejected="."),
        record(1, prompt=prompt * 9, chosen=completion, rejected="."),
        record(2, prompt=prompt, chosen=", there was a cat", rejected=", there was a dog"),
        record(3, prompt=prompt, chosen=".", rejected="."),
    ]
    room = len(long) + 3
    pairs, report = encode_pairs(policy, records, room)
    ((whole,), _) = encode_pairs(policy, records[:1], LONG)
    assert pairs == [Pair(whole.prompt, whole.chosen[:3], whole.rejected)]
    assert report.told("f") == (
        f"warning: f: 1 used; 3 records dropped (1 prompt of {room} tokens or more, the first f:2; 1 chosen equal "
        f"to rejected in their first {room} tokens, the first f:3; 1 chosen equal to rejected, the first f:4); "
        "1 completion cut"
    )
    assert EOS not in pairs[0].chosen and pairs[0].rejected[-1] == EOS
    with pytest.raises(ValueError, match=r"^f:4: chosen equal to rejected$"):
        encode_pairs(policy, records[3:], room)
    with pytest.raises(ValueError, match=r"^no record can be used: 2 records dropped \(1 chosen equal"):
        encode_pairs(policy, records[2:], room)


def test_keep_end_cuts_the_start_of_prompts_as_trl_does(trl, policy):
    """The longer sequence of a pair is TRL's, and the other has the same prompt."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    texts = {"prompt": "Once upon a time there was a girl.", "chosen": " She ran home.", "rejected": " No."}
    ((whole,), _) = encode_pairs(policy, [record(**texts)], LONG)
    longest, least = len(whole.prompt) + len(whole.chosen), len(whole.chosen) + 1
    for max_length in (least, least + 3, longest):
        ((pair,), report) = encode_pairs(policy, [record(**texts)], max_length, truncation_mode="keep_end")
        collate = DataCollatorForPreference(0, max_length=max_length, truncation_mode="keep_end")
        ids = {"prompt_ids": whole.prompt, "chosen_ids": whole.chosen, "rejected_ids": whole.rejected}
        theirs = collate([{name: list(value) for name, value in ids.items()}])
        assert [*pair.prompt, *pair.chosen] == theirs["input_ids"][0][-max_length:].tolist()
        assert pair.prompt == whole.prompt[-len(pair.prompt) :] and pair.rejected == whole.rejected
        assert report.cut == 0 and report.shortened == (max_length < longest) and not report.dropped.count
    # Where the answer alone is too long, it loses its end.
    ((pair,), report) = encode_pairs(policy, [record(**texts)], least - 2, truncation_mode="keep_end")
    assert (pair.prompt, pair.chosen) == (whole.prompt[-1:], whole.chosen[: least - 3]) and report.cut == 1


def test_margins(policy):
    def margin(**fields):
        ((pair,), _) = encode_pairs(policy, [record(prompt="a", chosen=" b", rejected=" c", **fields)], LONG)
        return pair.margin

    assert margin() == margin(margin=None, score_chosen=None) == 0.0
    assert margin(margin=2) == 2.0
    assert margin(score_chosen=8.5, score_rejected=9) == -0.5
    for fields, message in [
        ({"score_chosen": 1.0}, "score_rejected: expected a finite number, found null"),
        ({"margin": float("nan")}, "margin: expected a finite number, found nan"),
        ({"margin": "2"}, "margin: expected a finite number, found a string"),
    ]:
        with pytest.raises(ValueError, match=f"f:1: {message}"):
            margin(**fields)


def test_parquet_and_json_lines_are_read_alike(chatting, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [
        {"messages": [user("Hi"), assistant("Lily ran.")], "source": "x"},
        {"messages": [{"role": "system", "content": "Be kind."}, user("So?"), assistant("Tom.")]},
    ]
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet, lines = (
        encode_examples(chatting, load_records(str(tmp_path / name)), 99) for name in ("a.parquet", "a.jsonl")
    )
    assert parquet == lines and lines[1].used == 2


# Texts that end with a line break, as they are drawn


def test_a_completion_that_ends_with_a_stop_text_has_no_eos_behind_it(policy):
    """What `--stop` draws ends with the text itself; one that ended otherwise keeps its EOS."""
    fields = {"prompt": "Mira visits", "chosen": " Ida.\n", "rejected": " Bela."}
    plain, found = (encode_pairs(policy, [record(**fields)], LONG, stop=s)[0][0] for s in ((), ("!", "\n")))
    assert found.chosen == plain.chosen[:-1] and plain.chosen[-1] == EOS
    assert found.rejected == plain.rejected and found.rejected[-1] == EOS
    assert policy.tokenizer.decode(found.chosen).endswith("\n")


def test_examples_and_whole_texts_end_there_too(policy):
    row = record(prompt="Mira visits", completion=" Ida.\n")
    text = record(text="Mira visits Ida.\n")
    for given in (row, text):
        ends = [encode_examples(policy, [given], LONG, stop=s)[0][0].completion[-1] for s in ((), ("\n",))]
        assert ends[0] == EOS and ends[1] == policy.tokenizer.encode("\n", add_special_tokens=False)[-1]
    learned = encode_learned(policy, [row], LONG, completion_only=False, stop=("\n",))[0][0]
    assert learned.completion[-1] != EOS


def test_a_reward_model_learns_from_what_it_will_be_handed(policy):
    """A reward is handed what was drawn without its stop text, and without EOS; so its pairs are."""
    fields = {"prompt": "Mira visits", "chosen": " Ida.\n", "rejected": " Bela."}
    ((pair,), _) = encode_pairs(policy, [record(**fields)], LONG, whole=True, stop=("\n",))
    for text, ids, has_ended in ((" Ida.", pair.chosen, False), (" Bela.", pair.rejected, True)):
        whole = encode_whole(policy.tokenizer, "Mira visits", text, has_ended=has_ended)
        assert [*pair.prompt, *ids] == whole


def test_of_two_stop_texts_the_longer_is_the_end(policy):
    fields = {"prompt": "Mira visits", "chosen": " Ida##.", "rejected": " Bela."}
    found = [
        encode_pairs(policy, [record(**fields)], LONG, whole=True, stop=stop)[0][0]
        for stop in ((".", "##."), ("##.", "."))
    ]
    assert found[0] == found[1]
    assert text_of(policy, found[0].prompt, found[0].chosen).endswith(" Ida")


def test_a_chat_ends_by_its_template_and_by_no_text(chatting):
    chat = record(messages=[user("Hi"), assistant("Yes\n")])
    with pytest.raises(ValueError, match=r"--stop: expected texts, found a chat"):
        encode_examples(chatting, [chat], LONG, stop=("\n",))
    with pytest.raises(ValueError, match=r"--stop: expected texts, found --assistant-only-loss"):
        encode_learned(chatting, [chat], LONG, assistant_only=True, stop=("\n",))
