"""Benchmarks: aiockpt beside its peers and beside a bare loop, in one run, on one server.

``python -m bench NAME`` runs one; ``python -m bench --help`` lists them. Every contender works in a process of its own,
rounds take turns, and what is reported are medians with their spread.
"""
