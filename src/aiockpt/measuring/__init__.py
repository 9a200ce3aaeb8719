"""Measuring saves and loads: what ``aiockpt bench`` and the comparison with other libraries in ``bench/`` share."""
