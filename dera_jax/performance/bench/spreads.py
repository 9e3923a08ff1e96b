"""How the figures of several repeats are told."""


def format_spread(figures: dict) -> str:
    """Returns the median with the range of `timing.spread`.

    >>> format_spread({"median": 1.5, "min": 1.234, "max": 2, "values": [1.234, 1.5, 2]})
    '1.50 (1.23–2.00)'
    """
    return f"{figures['median']:.2f} ({figures['min']:.2f}–{figures['max']:.2f})"
