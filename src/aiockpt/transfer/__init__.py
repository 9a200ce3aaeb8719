"""Whole checkpoints moved and proved: between buckets and folders, byte by byte against their checksums."""
