"""Measures sandboxd against bare processes and other sandboxes: `sandboxd bench [QUESTION]...`, `make bench`.

One module per question in `questions/`. Ours and what it is compared with are measured in turn in one run, so that a
machine's bad day spoils both sides of a ratio alike.
"""
