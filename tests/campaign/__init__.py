"""A campaign against the commands: bad inputs of every kind of file, kills at every file operation.

`python -m tests.campaign --seed=N --inputs=60 --kills=12`; see README.md beside this file.
"""
