"""The table of every rule on one pair: it has every rule, and the page's figures are its own."""

import csv
import json

from dera_jax.rules.catalogue import KNOWN
from dera_jax.rules.known import parse
from scripts.kin import RULES, UNMEASURED, table_of
from scripts.kin_figure import PANELS
from tests.support.processes import ROOT

PAGE = ROOT / "results/rules"


def test_every_rule_is_there_or_it_is_said_why_not():
    parts = {part.name for rule in RULES for part in parse(rule)}
    assert parts == KNOWN.keys() - UNMEASURED.keys()
    assert {rule for rules in PANELS.values() for rule in rules} == RULES.keys()


def test_the_page_tells_what_was_measured():
    kept = json.loads((PAGE / "kin.json").read_text())
    text = (PAGE / "kin.csv").read_text()
    assert table_of(kept["rules"], kept["times_linear"]) == text
    rows = {(row["rule"], row["lambda"]): row for row in csv.DictReader(text.splitlines())}
    assert len(rows) == 4 * len(RULES)
    page = " ".join((PAGE / "README.md").read_text().split())
    assert all(f"`{rule}`" in page for rule in UNMEASURED)
    entropy = {key: float(row["cross_entropy"]) for key, row in rows.items()}
    for said in (
        f"falls from {entropy['linear', '1']:.2f} to {entropy['plausible', '1']:.2f} nats per token at λ = 1",
        f"stays at {entropy['plausible', '2']:.2f} at λ = 2",
        f"the linear rule rises to {entropy['linear', '2']:.2f}",
        f"`kl-budget`, at {float(rows['kl-budget', '1']['times_linear']):.2f}",
        f"`common`, at {float(rows['common', '1']['times_linear']):.2f}",
        *(
            f"{float(rows[rule, '2']['reward']):.2f} for {float(rows[rule, '2']['kl']):.1f}"
            for rule in ("linear", "probabilities")
        ),
    ):
        assert said in page, said
