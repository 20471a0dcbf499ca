"""Options of `lightning-paf fit` that several experiments share."""

NATURAL = ("--model.objective", "Natural")
GAUSSIAN_START = ("--model.attack.start", "gaussian", "--model.attack.clamp_start", "false")


def objective(name: str, **options: object) -> tuple[str, ...]:
    """Words that choose an objective and its options."""
    words = [(f"--model.objective.{option}", str(value)) for option, value in options.items()]
    return ("--model.objective", name, *(word for pair in words for word in pair))
