"""Where commands write: never over what is of another kind, and refused before the work whose figures would be lost."""

import os

import pytest

from dera_jax.commands import bench, compare, plan, plot, score, tune

RUN = "no/such/run"
WRITERS = {
    "compare": (compare, [RUN, "other", "--judge=length:1:2"], "--out", ".json"),
    "plot": (plot, [RUN], "--out", ".png"),
    "score": (score, ["--pairs=no/such/pairs.jsonl"], "--out", ".json"),
    "tune": (tune, [RUN], "--out", ".json"),
    "tune's plot": (tune, [RUN], "--plot", ".png"),
    "plan": (plan, ["--topology=nonsense"], "--out", ".json"),
    "bench": (bench, ["--sections=nonsense"], "--out", ".json"),
}


@pytest.fixture(params=WRITERS.values(), ids=WRITERS)
def refused(request, capsys):
    """Runs a command, whose other input is wrong too, with a name for its output; returns what it says."""
    command, words, option, _ = request.param

    def run(name) -> str:
        assert command.main([*words, f"{option}={name}"]) == 2
        return capsys.readouterr().err

    run.option, run.ending = request.param[2:]
    return run


def test_a_pipe_stays_a_pipe(refused, tmp_path):
    os.mkfifo(pipe := tmp_path / f"pipe{refused.ending}")
    assert "expected a file, found a pipe or a device" in refused(pipe)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_the_files_of_a_run_and_data_are_not_written_over(refused, tmp_path):
    for name in ("rows.jsonl", "manifest.json", "prompts.csv", "model.safetensors"):
        (tmp_path / name).write_text("precious")
        line = refused(tmp_path / name)
        assert line.startswith(f"error: {refused.option}: ") and "of another kind" in line
        assert (tmp_path / name).read_text() == "precious"


def test_a_name_that_cannot_be_written_is_told_before_anything_is_read(refused, tmp_path):
    for name, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "there is no folder"),
        (tmp_path / ("a" * 999), "too long"),
    ):
        line = refused(name)
        assert line.startswith(f"error: {refused.option}: ") and told in line


def test_figures_are_not_called_what_they_are_not(refused, tmp_path):
    line = refused(tmp_path / "figure.pdf")
    assert f"figure.pdf: expected a name that ends in {refused.ending}" in line


def test_a_name_that_can_be_written_is_no_error_of_its_own(refused, tmp_path):
    (tmp_path / f"old{refused.ending}").write_text("old")
    for name in (f"old{refused.ending}", f"new{refused.ending}", "new"):
        assert f"error: {refused.option}: " not in refused(tmp_path / name)
    assert (tmp_path / f"old{refused.ending}").read_text() == "old"
