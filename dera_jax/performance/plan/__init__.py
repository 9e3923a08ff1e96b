"""Does it fit, and how fast is it, on chips that are not here."""
