"""Seeing what happened: exchanges watched, reports of saves and loads, progress, timelines, OpenTelemetry."""
