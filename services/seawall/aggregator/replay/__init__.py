"""Replay: records of a stretch of traffic through the join again, judged by one bundle or by two side by side.

records     from the topics for a range of time, or from an exported file
run         the same join and policy as the aggregator's, without its outputs
tally       what would change: counts, a confusion table, sampled generation ids
decisions   a past decision made again, to compare it bit for bit
"""
