import pytest

from dera_jax.commands.bench import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--aligned=A", "expected both --reference and --aligned, or neither"),
        ("--reference=R", "expected both --reference and --aligned, or neither"),
        ("--reference=R --aligned=A,", "--aligned: a model is missing in 'A,'"),
        ("--reference=R --aligned=A,B", "--aligned: expected one model, found 2 in 'A,B'"),
    ],
)
def test_models_are_named_as_elsewhere_and_checked_before_anything_runs(capsys, tmp_path, words, message):
    out = tmp_path / "out.json"
    assert main([*words.split(), f"--out={out}"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not out.exists()
