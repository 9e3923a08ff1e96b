"""The experiments at a size that two cores can do: what is trained and decoded; the numbers are in `settings`.

The models are stories260K (a real pretrained Llama of 260 032 parameters) and a T5 of a million, trained here on E2E.
"""

from collections.abc import Sequence

from dera_jax.experiments.declare import Experiment, Outside, Place, Source, Step
from scripts.reproduce.settings import (
    CONVERGED,
    DPO,
    FAR,
    GOLD,
    GOLD_WEAK,
    GRID,
    HERE,
    HH_STEPS,
    INVENTED,
    LINE,
    PARAGRAPH,
    PPO,
    PREFERENCES,
    REWARD,
    SEEDED,
    SENTENCE,
    SENTIMENT_WEIGHT,
    SFT,
    STORIES,
)


class Recipes:
    """All experiments, on what the data folder holds."""

    def __init__(self):
        self.stories = Outside("stories260K")
        self.sentiment = Outside("vader/vader_lexicon.txt", kind="lexicon:")
        self.stories_file = Outside("tinystories/tiny_stories_head.txt")
        self.openings = Step(
            f"{HERE}.data:openings",
            "data/openings",
            {"stories": self.stories_file, "words": 8, "held_out": 128},
        )
        self.e2e = Step(
            f"{HERE}.data:e2e",
            "data/e2e",
            {"data": Outside("e2e"), "held_out": 128, "vocabulary": 1024, "longest": 64},
        )
        self.hh = Step(
            f"{HERE}.data:hh", "data/hh", {"data": Outside("hh_rlhf"), "context": 160, "longest": 480}
        )

    def experiments(self) -> dict[str, Experiment]:
        """Returns every experiment by its name, in the order in which they are made."""
        made = [
            *self.stories_converged(),
            self.stories_length("rloo"),
            self.e2e_length(),
            *self.gold(),
            self.hallucination(),
            self.stories_length("ppo"),
            self.stories_length("lora"),
            *self.preferences(),
        ]
        return {experiment.name: experiment for experiment in made}

    def others(self) -> dict[str, list[Step]]:
        """Returns what has another shape, by its name."""
        return {"two-rewards": self.two_rewards(), "extras": self.extras()}

    def stories_length(self, algorithm: str) -> Experiment:
        """Returns Fig. 2 on stories: the first paragraph shall have 40 to 60 tokens."""
        options = {"reward": PARAGRAPH, "data": self.openings / "train.jsonl"} | STORIES
        told, chosen = {
            "rloo": ("policy gradient", {"algorithm": "rloo"}),
            "ppo": ("PPO", {"algorithm": "ppo"} | PPO),
            "lora": (
                "policy gradient of an adapter",
                {"algorithm": "rloo", "lora_r": 16, "learning_rate": 1e-3},
            ),
        }[algorithm]
        few, seeds = algorithm == "lora", {"rloo": 6, "ppo": 5, "lora": 1}[algorithm]
        return Experiment(
            name=f"stories-length-{algorithm}",
            title=f"stories260K, length of the first paragraph, {told}, stopped early",
            reference=self.stories,
            training=Step("train.rlhf", "", {"model": self.stories} | options | chosen),
            beta=0.1,
            strengths=(0.0, *SEEDED) if few else GRID,
            retrained=SEEDED if few else GRID[1:],
            repeated=() if few else SEEDED,
            num_seeds=seeds,
            combined=tuple(s for s in GRID if s not in (0, 1)) if algorithm == "rloo" else (0.5, 2.0),
            decoding=self._on_openings(PARAGRAPH),
        )

    def stories_converged(self) -> list[Experiment]:
        """Returns the same where the optimum still depends on the strength, by trainings that come near to it.

        At β = 0.1 the optimum is in the band at nearly every strength. One family of models serves two base β.
        """
        given = {
            "model": self.stories,
            "data": self.openings / "train.jsonl",
            "reward": PARAGRAPH,
            "stop": LINE,
        }
        decoding = self._on_openings(PARAGRAPH) | {"num_prompts": 128, "num_samples": 12}
        grids = {
            1.0: ((0.2, 0.5, 1.0, 2.0, 3.0, 4.0), SEEDED),
            0.5: ((0.1, 0.25, 0.5, 1.0, 1.5, 2.0), (0.25, 0.5, 1.0)),
        }
        return [
            Experiment(
                name=f"stories-converged-{beta:g}",
                title=f"stories260K, length of the first paragraph, PPO with little gradient noise, from β = {beta:g}",
                reference=self.stories,
                training=Step("train.rlhf", "", given | CONVERGED),
                models="stories-converged",
                beta=beta,
                strengths=(0.0, *strengths),
                retrained=strengths,
                repeated=repeated,
                num_seeds=3,
                combined=(0.5, 2.0),
                decoding=decoding,
            )
            for beta, (strengths, repeated) in grids.items()
        ]

    def two_rewards(self) -> list[Step]:
        """Returns Appendix B: a grid over the strengths of a length and a sentiment, and models of weighted sums.

        Both are aligned at one β, so (λ₁, λ₂) stands for a training on λ₁ r₁ + λ₂ r₂.
        """
        both = {
            "reward": (PARAGRAPH, self.sentiment),
            "data": self.openings / "train.jsonl",
            "model": self.stories,
        }

        def trained(first: float, second: float) -> Step:
            weights = f"{first:g},{SENTIMENT_WEIGHT * second:g}"
            options = both | STORIES | {"reward_weights": weights, "beta": 0.1, "seed": 0}
            return Step("train.rlhf", f"two-rewards/weights={first:g}+{second:g}", options)

        def decoded(name: str, aligned: Sequence[Source], strengths: Sequence[str]) -> Step:
            given = {"reference": self.stories, "aligned": tuple(aligned), "lambda_": tuple(strengths)}
            return Step("eval.sweep", f"two-rewards/{name}", given | self._on_openings(*both["reward"]))

        grid = [f"{a:g}+{b:g}" for a in (0, 0.5, 1) for b in (0, 0.5, 1)]
        sums = ((0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
        return [
            decoded("grid", (trained(1, 0), trained(0, 1)), grid),
            *(decoded(f"trained-{a:g}+{b:g}", [trained(a, b)], ["1"]) for a, b in sums),
        ]

    def extras(self) -> list[Step]:
        """Returns what is measured beside: the cost of mixing (claim 11), a strength for each prompt (claim 12)."""
        pair = self.stories_length("rloo")
        asked = self.openings / "held_out.jsonl"
        sides = {"reference": self.stories, "aligned": pair.aligned(), "prompts": asked}
        cost = Step(f"{HERE}.extras:cost", "extras/cost.json", sides | {"rows": 32, "new_tokens": 128})
        given = {"prompts": asked, "strengths": tuple(f"{s:g}" for s in GRID)}
        own = Step(f"{HERE}.extras:strengths_by_prompt", "data/strengths-by-prompt", given)
        several = dict(pair.dera().options) | {"prompts": own / "prompts.jsonl", "lambda_": "prompt"}
        return [cost, Step("eval.sweep", "extras/strengths-by-prompt", several)]

    def _on_openings(self, *rewards: Source) -> dict:
        return {
            "prompts": self.openings / "held_out.jsonl",
            "num_prompts": 64,
            "num_samples": 16,
            "reward": rewards,
            "stop": LINE,
        }

    def t5(self) -> Step:
        """Returns the supervised training of a T5 on E2E, from scratch."""
        return Step(
            "train.sft",
            "models/t5",
            {
                "model": self.e2e / "model",
                "from_scratch": True,
                "data": self.e2e / "train.jsonl",
                "max_steps": 1200,
                "batch_size": 32,
                "learning_rate": 3e-3,
                "warmup_ratio": 0.05,
            },
        )

    def e2e_length(self) -> Experiment:
        """Returns Fig. 2 and 5 on E2E: a text shall have 16 to 24 tokens, whatever it leaves out."""
        given = {"model": self.t5(), "data": self.e2e / "prompts.jsonl", "reward": SENTENCE}
        steps = {"batch_size": 64, "num_samples": 4, "max_new_tokens": 64, "value_head": "shared"}
        return Experiment(
            name="e2e-length-ppo",
            title="E2E, length of the text, PPO on a T5, stopped early",
            reference=self.t5(),
            training=Step("train.rlhf", "", given | PPO | steps | {"learning_rate": 1e-4}),
            beta=0.1,
            strengths=GRID,
            retrained=GRID[1:],
            repeated=SEEDED,
            num_seeds=3,
            combined=tuple(s for s in GRID if s not in (0, 1)),
            decoding=self._on_e2e(SENTENCE, "slots"),
        )

    def _on_e2e(self, *rewards: Source) -> dict:
        return {
            "prompts": self.e2e / "held_out.jsonl",
            "num_prompts": 128,
            "num_samples": 8,
            "max_new_tokens": 64,
            "reward": rewards,
        }

    def hallucination(self) -> Experiment:
        """Returns Fig. 4: a text shall say nothing that the input does not."""
        given = {"model": self.t5(), "data": self.e2e / "prompts.jsonl", "reward": INVENTED}
        steps = {
            "batch_size": 64,
            "num_samples": 4,
            "max_new_tokens": 64,
            "max_steps": 60,
            "learning_rate": 2e-4,
        }
        return Experiment(
            name="e2e-invented",
            title="E2E, nothing invented, policy gradient on a T5",
            reference=self.t5(),
            training=Step("train.rlhf", "", given | steps),
            beta=0.1,
            strengths=FAR,
            combined=(0.5, 2.0, 5.0),
            decoding=self._on_e2e(INVENTED, "slots") | {"num_samples": 4},
        )

    def gold(self) -> list[Experiment]:
        """Returns Fig. 3, 6 and 7 where the truth is known: stories shall be happy and fluent, by a learned reward.

        Pairs of the reference's own paragraphs are labelled by the gold reward with Bradley–Terry noise; a
        reward model learns from them, policy gradient from it, DPO from the pairs.
        """
        drawn = Step(
            "eval.sweep",
            "data/gold-samples",
            {
                "reference": self.stories,
                "aligned": self.stories,
                "lambda_": "0",
                "prompts": self.openings / "train.jsonl",
                "num_prompts": 600,
                "num_samples": 32,
                "reward": self.sentiment,
                "stop": LINE,
            },
        )
        labelled = {"rows": drawn, "temperature": 0.5, "held_out": 0.2, "stop": LINE}
        pairs = Step(f"{HERE}.data:gold_pairs", "data/gold", labelled)
        held_out = pairs / "held_out.jsonl"
        given = {"model": self.stories, "data": pairs / "train.jsonl", "stop": LINE}
        few = REWARD | {"batch_size": 32, "num_train_epochs": 1}
        learned = Place(
            Step("train.reward", "models/gold-reward", given | {"eval_data": held_out} | few), kind="model:"
        )
        by_reward = {"model": self.stories, "data": self.openings / "train.jsonl", "reward": learned}
        unseen = {"prompts": self.openings / "confirmatory.jsonl", "num_samples": 12}
        common = {"decoding": self._on_openings(self.sentiment, learned) | unseen, "pairs": held_out}
        return [
            Experiment(
                "gold-pg",
                "stories260K, happy paragraphs by a reward model, policy gradient",
                self.stories,
                Step("train.rlhf", "", by_reward | STORIES),
                beta=0.5,
                **common,
                **GOLD,
            ),
            Experiment(
                "gold-dpo",
                "stories260K, happy paragraphs by pairs, DPO",
                self.stories,
                Step("train.dpo", "", given | DPO),
                beta=0.1,
                **common,
                **GOLD,
            ),
            # With a small β one epoch ends far from the reference only at a larger rate.
            Experiment(
                "gold-dpo-weak",
                "stories260K, happy paragraphs by pairs, DPO with a small β",
                self.stories,
                Step("train.dpo", "", given | DPO | {"learning_rate": 3e-4}),
                **common,
                **GOLD_WEAK,
            ),
        ]

    def preferences(self) -> list[Experiment]:
        """Returns Fig. 3, 6 and 7 on Anthropic HH, judged by a reward model that learned from other pairs."""
        pairs = {"data": self.hh / "policy.jsonl", "max_length": 384}
        sft = Step("train.sft", "models/hh-sft", {"model": self.stories} | pairs | SFT)
        learned, judge = (
            Step(
                "train.reward",
                f"models/hh-reward-{part}",
                {"model": sft, "data": self.hh / f"{part}.jsonl", "max_length": 384} | REWARD,
            )
            for part in ("policy", "judge")
        )
        decoding = {
            "prompts": self.hh / "held_out.jsonl",
            "num_prompts": 256,
            "num_samples": 2,
            "max_new_tokens": 64,
            "reward": (Place(judge, kind="model:"), Place(learned, kind="model:")),
        }
        held_out = self.hh / "pairs.jsonl"
        by_reward = {
            "model": sft,
            "data": self.hh / "policy.jsonl",
            "reward": Place(learned, kind="model:"),
            "max_new_tokens": 64,
        }
        return [
            Experiment(
                "hh-pg",
                "Anthropic HH, policy gradient",
                sft,
                Step("train.rlhf", "", by_reward | HH_STEPS),
                beta=0.1,
                decoding=decoding,
                pairs=held_out,
                **PREFERENCES,
            ),
            Experiment(
                "hh-dpo",
                "Anthropic HH, DPO",
                sft,
                Step("train.dpo", "", {"model": sft} | pairs | DPO),
                beta=0.1,
                decoding=decoding,
                pairs=held_out,
                **PREFERENCES,
            ),
        ]
