"""Pure decisions: what to ask for, in what sizes, how much at once, what to do when it fails."""
