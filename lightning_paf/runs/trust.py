"""Option that accepts the configuration next to a checkpoint."""

TRUST = "--trust-config"
TRUST_HELP = "Build any class that a config.yaml found next to a checkpoint names; it may run any code (SECURITY.md)."
