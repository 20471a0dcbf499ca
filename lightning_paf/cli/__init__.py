"""The training commands: parser, saved configurations, checkpoints to evaluate."""
