"""The engine for threads: blocking calls, sessions fed from a thread, streams."""
