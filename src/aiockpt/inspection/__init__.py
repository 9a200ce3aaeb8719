"""Pure summaries over checkpoints' metadata and listings: what there is, what differs, what a load would cost."""
