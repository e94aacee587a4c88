"""Attacks on this host's own sandboxes: hostile programs as data, what must come of each, and proof that it can fail.

cases/*.toml  what is tried, how bad success would be, where the attack comes from      (data)
programs/     the hostile programs
corpus        reads the cases                                                           (pure)
judge         what was seen, against what a case expects                                (pure)
target        runs a case: in our sandbox, or in another one's
host          what of a job could stay on the host, before and after
suite         the whole: walls on, one wall off at a time, the controls
soak          many jobs at once, hostile and honest: what drifts
report        a page for people, JSON for programs
"""
