"""The outside files of `get_data.py`: where each is published, its checksum, its licence."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scripts.llama2c import convert

HOSTS = {
    "github": "https://raw.githubusercontent.com/{repository}/{revision}/{path}",
    "github-lfs": "https://media.githubusercontent.com/media/{repository}/{revision}/{path}",
    "hf": "https://huggingface.co/{repository}/resolve/{revision}/{path}",
}
"""Addresses of a file of a repository."""


@dataclass(frozen=True)
class File:
    """A file as it must be."""

    name: str
    size: int
    """In bytes."""
    sha256: str
    places: tuple[str, ...] = ()
    """HOST:REPOSITORY@REVISION/PATH, the first one that has it; none of a file that is made from others."""

    def urls(self) -> list[str]:
        """Returns where it can be had from."""
        parts = (re.fullmatch(r"([\w-]+):([\w./-]+)@(\w+)/(.+)", place).groups() for place in self.places)
        return [HOSTS[host].format(repository=r, revision=v, path=p) for host, r, v, p in parts]


@dataclass(frozen=True)
class DataSet:
    """Files that belong together, in a folder of the data folder."""

    name: str
    told: str
    """What it is."""
    licence: str
    files: tuple[File, ...]
    sources: tuple[File, ...] = ()
    """What the files without a place are made from; not kept."""
    make: Callable[[Mapping[str, bytes]], dict[str, bytes]] | None = None
    """Names and contents of the sources to those of the files."""


E2E = "github:tuetschek/e2e-dataset@ab0d967dd5729ce455ef14ba9ffafc456a335264"
HH = "DaehanKim/EasyRLHF@45eccb72ddb8c18aa52dc2a184516380e06582fe/data"
VADER = "github:cjhutto/vaderSentiment@44fc044cd877310ee8278a0eadf34bcd50d41d06"
T5 = "github:praeclarum/transformers-js@205ca2ad6bf052d7ef5b6fd3fabb106e1083c188/tests"
LLAMAS = "hf:karpathy/tinyllamas@0bd21da7698eaf29a0d7de3992de8a46ef624add/stories260K"
COMMONGEN = "github:INK-USC/CommonGen@f5a4d0140876cf862cb41ffc9aefa834d0d6d0f7"


def _pairs(subset: str) -> tuple[str, ...]:
    """Returns the places of Anthropic's pairs: large files of a repository lie elsewhere on its host."""
    path = f"{subset}/test.jsonl.gz"
    return f"github:{HH}/{path}", f"github-lfs:{HH}/{path}", f"hf:datasets/Anthropic/hh-rlhf@main/{path}"


SETS = (
    DataSet(
        "stories260K", "a pretrained Llama of 260 032 parameters (karpathy/tinyllamas)", "MIT",
        (
            File("model.safetensors", 1044992, "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd"),
            File("tokenizer.json", 19374, "18b30d13cadc71762310d15a9a960beb1f94572478c090989157570a916b7bf2"),
            File("config.json", 712, "5b6ee9160bef369b809963b0d0223c4fc8e67942b3603af21e614723a3377857"),
            File("tokenizer_config.json", 191, "387e5519b083f1e3e6bf505654111c1f7864e87de2b2a0b58ebbcc6793278e37"),
            File("LICENSE", 1063, "e87b912002f04cdfa837eaf7f70548ab79b9cb62a285495edf575f3da875aec4",
                 ("github:karpathy/llama2.c@350e04fe35433e6d2941dce5a1f53308f87058eb/LICENSE",)),
        ),
        (
            File("stories260K.bin", 1056540, "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
                 (f"{LLAMAS}/stories260K.bin",)),
            File("tok512.bin", 6227, "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
                 (f"{LLAMAS}/tok512.bin",)),
        ),
        lambda sources: convert(sources["stories260K.bin"], sources["tok512.bin"]),
    ),
    DataSet(
        "tinystories", "the first 0.94 MB of TinyStories' training file", "CDLA-Sharing-1.0",
        (File("tiny_stories_head.txt", 944426, "c56cfd24fb1c542b141a396184b822a4db3672abdb4c49c6aa843171c5e822a5",
              ("github:s-ajaykumar/smallGPT@b8b899265a5574abd2c19d8857039309184a357c/data/tiny_stories.txt",)),),
    ),
    DataSet(
        "hh_rlhf", "Anthropic's human preference pairs, test splits", "MIT",
        (
            File("harmless-base.test.jsonl.gz", 742801,
                 "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03", _pairs("harmless-base")),
            File("helpful-base.test.jsonl.gz", 875191,
                 "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b", _pairs("helpful-base")),
            File("LICENSE.hh-rlhf.txt", 1066, "d4fb18db48757e273261a5597b8a09381de8073da060474ce33d0643e06c875e",
                 ("github:anthropics/hh-rlhf@f95611684ee0c6471fa011987de2c2ef2f8ccb05/LICENSE",)),
        ),
    ),
    DataSet(
        "e2e", "restaurants: meaning representations and texts, development and test set", "CC BY-SA 4.0",
        (
            File("devset.csv", 1161305, "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
                 (f"{E2E}/devset.csv",)),
            File("testset_w_refs.csv", 1310822, "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
                 (f"{E2E}/testset_w_refs.csv",)),
        ),
    ),
    DataSet(
        "vader", "7 520 words with rated sentiment", "MIT",
        (
            File("vader_lexicon.txt", 426786, "ec636f884f36b5de6a4d681b2f61c08c2ec90eeb440472033f3307d0d6fa8bc9",
                 (f"{VADER}/vaderSentiment/vader_lexicon.txt",)),
            File("LICENSE.txt", 1076, "b78925304c567623f14677bad66b8e305e7ddcaf7982c8d8411ce51c55a8bf51",
                 (f"{VADER}/LICENSE",)),
        ),
    ),
    DataSet(
        "mt_bench", "the 80 questions of MT-Bench", "Apache-2.0",
        (File("mt_bench_question.jsonl", 48929, "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
              ("github:lm-sys/FastChat@0e6d3e4beaab66f4d3f93db72541a4abab8af28d/fastchat/llm_judge/data/"
               "mt_bench/question.jsonl",)),),
    ),
    DataSet(
        "t5_tokenizer", "T5's tokenizer and 1 995 encodings by it", "Apache-2.0 (tokenizer), MIT",
        (
            File("t5-base-tokenizer.json", 1389353,
                 "d2acde0d8d71dd30a711834b07781b9c89feaac33fd332f60507699282740066",
                 (f"{T5}/t5-base-tokenizer.json",)),
            File("t5-base-tests.json", 826956, "d6a72bba34f5d69069b5a36f914fd385df2631103a9a0059ca0d5167090d79b1",
                 (f"{T5}/t5-base-tests.json",)),
        ),
    ),
    DataSet(
        "advbench", "520 harmful requests", "MIT",
        (File("advbench_harmful_behaviors.json", 117857,
              "725592fb371c011b66a0e0947d78aa4d79ad670ef8b2ebd0adb88a5068d130db",
              ("github:uw-nsl/SafeDecoding@5b77507dea95031b6a067e6d5a136831103ae193/datasets/"
               "advbench_harmful_behaviors.json",)),),
    ),
    DataSet(
        "commongen", "993 sets of concepts with sentences that people wrote", "MIT",
        (
            File("commongen.dev.jsonl", 551106, "782686b1d4d5e11055c7d97820d0c64788d50f35ea129063602b5740c6044839",
                 (f"{COMMONGEN}/dataset/final_data/commongen.dev.jsonl",)),
            File("LICENSE.txt", 1072, "9c8b90b2c226a918ba93e92c711ba5ffc028078f418dcbbf3f1564304bf76edb",
                 (f"{COMMONGEN}/LICENSE",)),
        ),
    ),
)  # fmt: skip
KNOWN = {each.name: each for each in SETS}
"""Sets by their names."""
