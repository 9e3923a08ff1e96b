"""Counters and distributions for Prometheus, under the names that vLLM's have, with the prefix `dera:`."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from dera_jax.decoding.request import Completion
from dera_jax.serving.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
NATS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5)


class Metrics:
    """What has happened since the server began."""

    def __init__(self, engine: Engine, model: str):
        """Counts from 0.

        Args:
          engine: is asked how busy it is whenever the figures are read.
        """
        self.registry = CollectorRegistry()
        self.registry.register(_Busy(engine, model))
        ProcessCollector(registry=self.registry)
        self.model = model

        def histogram(name: str, told: str, buckets) -> Histogram:
            return Histogram(f"dera:{name}", told, ["model_name"], buckets=buckets, registry=self.registry)

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"dera:{name}", told, ["model_name", *labels], registry=self.registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens of completions.")
        self.successes = counter("request_success", "Completions that ended.", "finished_reason")
        self.cancelled = counter("request_cancelled", "Completions whose client went away.")
        self.failed = counter("request_failure", "Completions that failed.")
        self.refused = counter("request_refused", "Requests that were refused.", "status")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first tokens.", SECONDS
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", SECONDS
        )
        self.per_token = histogram("time_per_output_token_seconds", "Of a completion, per token.", SECONDS)
        self.lengths = histogram("request_generation_tokens", "Tokens of a completion.", TOKENS)
        self.prompt_lengths = histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.kl = histogram("kl_per_token", "KL to the reference per token, in nats.", NATS)
        self.log_z = histogram("log_z_per_token", "−log z of the mixture per token, in nats.", NATS)
        self.strengths = histogram(
            "request_lambda", "Strengths asked for (of the first aligned model).", STRENGTHS
        )

    def first(self, seconds: float) -> None:
        """Counts the first tokens of a completion."""
        self.first_token.labels(self.model).observe(seconds)

    def finished(self, completion: Completion, seconds: float) -> None:
        """Counts a completion that ended, `seconds` after it was asked for."""
        count = len(completion.tokens)
        self.generation_tokens.labels(self.model).inc(count)
        self.successes.labels(self.model, completion.finish_reason).inc()
        self.latency.labels(self.model).observe(seconds)
        self.per_token.labels(self.model).observe(seconds / max(1, count))
        self.lengths.labels(self.model).observe(count)
        self.kl.labels(self.model).observe(float(completion.kl_to_reference.mean()))
        if completion.log_normalizers is not None:
            self.log_z.labels(self.model).observe(max(0.0, -float(completion.log_normalizers.mean())))
        if completion.request.lambda_:
            self.strengths.labels(self.model).observe(completion.request.lambda_[0])

    def read(self, tokens: int) -> None:
        """Counts a prompt."""
        self.prompt_tokens.labels(self.model).inc(tokens)
        self.prompt_lengths.labels(self.model).observe(tokens)

    def text(self) -> bytes:
        """Returns everything in Prometheus' format."""
        return generate_latest(self.registry)


class _Busy:
    """How busy the engine is at the moment of asking."""

    def __init__(self, engine: Engine, model: str):
        self.engine, self.model = engine, model

    def collect(self):
        load = self.engine.load()
        for name, told, value in (
            ("num_requests_running", "Completions with a slot.", load.busy),
            ("num_requests_waiting", "Completions without a slot.", load.waiting),
            ("slots_busy", "Slots at work.", load.busy),
            ("slots", "Slots of the batch.", load.slots),
        ):
            family = GaugeMetricFamily(f"dera:{name}", told, labels=["model_name"])
            family.add_metric([self.model], value)
            yield family
