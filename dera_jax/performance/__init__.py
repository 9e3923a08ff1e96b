"""Does it fit and how fast: on chips that are not here (plan), and here (bench)."""
