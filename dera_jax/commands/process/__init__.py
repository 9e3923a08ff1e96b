"""How a command begins and ends: Ctrl-C, streams, exit codes."""
