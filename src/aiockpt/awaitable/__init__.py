"""Checkpoints for async programs: what DCP does synchronously, awaited; and the byte-level engine, from any loop."""
