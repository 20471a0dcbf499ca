"""One file a method; each holds its `STUDY`, and its name is what `lightning-paf reproduce` calls it."""
