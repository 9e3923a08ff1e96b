"""Requests over HTTP, each with its own strength, in one running batch."""
