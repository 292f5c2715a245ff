"""Retroactive matching: what a list learns today is looked for in what was measured yesterday.

A room of its own, ``perceptual_hashing.retroactive``. It reads signals.v1, which carries the hashes of every picture
that was measured, and bank_entries.v1, and joins the two: an entry with the pictures that were measured before it came.
A hit is written as a late signal, so the aggregator judges it alone and the decision escalates.

    columns        rows in arrays that grow at one end and are forgotten at the other
    window         what was measured lately: hash, when, where its signal stands
    entries        what was listed lately: hash, when, where its change stands; the banks' cards
    pairs          which rows of the two are near each other, or equal
    late           from a hit to the late signal, or to nothing: known then, disabled since, explained away
    engine         the loop
    service        the process

There is no local state to lose: both sides are read back from the log at the start, and so is what was written, so a
restart writes nothing twice.
"""
