"""How the figures of several repeats are told, and what they were made with."""


def format_spread(figures: dict) -> str:
    """Returns the median with the range of `timing.spread`.

    >>> format_spread({"median": 1.5, "min": 1.234, "max": 2, "values": [1.234, 1.5, 2]})
    '1.50 (1.23–2.00)'
    """
    return f"{figures['median']:.2f} ({figures['min']:.2f}–{figures['max']:.2f})"


def format_threads(result: dict) -> str:
    """Returns how many threads torch had.

    >>> format_threads({"torch_threads": {"chosen": 2}})
    '2 threads'
    """
    chosen = result["torch_threads"]["chosen"]
    return f"{chosen} thread{'s' * (chosen > 1)}"
