"""A plan as lines to print, and as JSON."""

from dataclasses import asdict


def table_lines(found) -> list[str]:
    """Returns the lines to print."""
    question, chip = found.question, found.question.slice_.chip
    data, parts = question.shape
    what = f"a step of {question.train}, {question.rows} pairs" if question.train else f"{question.rows} rows"
    lines = [
        f"{' and '.join(model.name for model in question.sized)}: {what} × {question.context} tokens on "
        f"{question.slice_.name} (mesh data:{data},model:{parts})",
        "",
        f"memory of a device{'':31}GB",
    ]
    lines += [f"  {name:<45}{size / 1e9:8.3f}" for name, size in found.memory.items()]
    verdict = "fits" if found.fits else "DOES NOT FIT"
    lines += [f"  {'total':<45}{found.total / 1e9:8.3f}  {verdict} in {question.slice_.hbm / 1e9:g} GB"]
    lines += [f"note: {note}" for note in found.notes]
    for program in found.programs:
        lines += ["", *_program(program, chip, question.shape[0])]
    if found.most_rows is not None:
        unit = "pairs" if question.train else "rows"
        lines += ["", f"largest number of {unit} that fits: {found.most_rows or 'none'}"]
        lines += [f"smallest slice that would do: {found.smallest.name if found.smallest else 'none'}"]
    return lines


def _program(program, chip, data: int) -> list[str]:
    prompts = "a prompt" if data == 1 else f"{data} prompts at once"
    names = {"decode": "decoding, a step", "prefill": f"prefill, {prompts}", "dpo": "training, a step"}
    lines = [
        f"{names[program.name]:<32}{'compiled':>10}{'least':>10}{'ratio':>8}",
        _compared("GB moved", program.moved / 1e9, program.least_moved / 1e9),
    ]
    if program.in_loop:
        lines += [_compared("GB moved within the chunk", program.in_loop / 1e9, program.least_moved / 1e9)]
    sent = sum(each["sent"] * each["count"] for each in program.collectives)
    count = sum(each["count"] for each in program.collectives)
    lines += [
        _compared("Tflop", program.flops / 1e12, program.least_flops / 1e12),
        f"  {program.seconds * 1e3:.2f} ms, {program.tokens / program.seconds:,.0f} tokens/s",
        f"  {count:.0f} collectives send {sent / 1e6:.1f} MB: {sent / chip.ici * 1e3:.2f} ms more if nothing "
        "else ran meanwhile",
    ]
    for each in sorted(program.collectives, key=lambda each: -each["sent"] * each["count"])[:5]:
        shapes = " ".join(each["shapes"])
        lines += [f"    {each['count']:6.0f} × {each['kind']} of {shapes} among {each['devices']}"]
    if program.unknown_loops:
        lines += [f"  counted once, trips unknown: {', '.join(program.unknown_loops)}"]
    return lines


def _compared(name: str, value: float, least: float) -> str:
    return f"  {name:<30}{value:10.3f}{least:10.3f}{value / least:8.3f}"


def as_json(found) -> dict:
    """Returns a plan as JSON."""
    question = found.question
    chip = question.slice_.chip
    return {
        "models": [model.name for model in question.sized],
        "topology": question.slice_.name,
        "devices": question.slice_.devices,
        "chip": {name: getattr(chip, name) for name in ("name", "hbm", "bandwidth", "flops", "ici")},
        "mesh": dict(zip(("data", "model"), question.shape, strict=True)),
        **{
            name: getattr(question, name)
            for name in ("rows", "context", "new_tokens", "train", "top_k", "top_p")
        },
        "kv_cache": question.sized[0].config.kv_cache,
        "memory": found.memory,
        "total": found.total,
        "fits": found.fits,
        "notes": found.notes,
        "programs": [
            asdict(program) | {"tokens_per_second": program.tokens / program.seconds}
            for program in found.programs
        ],
        "most_rows": found.most_rows,
        "smallest_slice": found.smallest.name if found.smallest else None,
    }
