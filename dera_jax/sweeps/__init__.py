"""Prompts × samples × strengths: the plan, its rows, running what is missing, judging what is there."""
