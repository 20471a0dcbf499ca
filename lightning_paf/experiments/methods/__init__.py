"""One file per method: its `EXPERIMENT`, run by `lightning-paf reproduce NAME`."""
