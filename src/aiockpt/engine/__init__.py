"""Composition: downloads, uploads and everything else, with retries and bounded concurrency."""
