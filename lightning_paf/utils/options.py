"""Checks of the arguments of a class against their rules."""


def require(prefix: str, **rules: tuple[object, bool, str, object]) -> None:
    """Check arguments in their order.

    Args:
        prefix: Option of the class, such as `--model.net`.
        **rules: For each argument its value, whether it is valid, the rule as "must be ...", and a usual value.

    Raises:
        ValueError: The first value that is not valid.
    """
    for name, (value, valid, rule, usual) in rules.items():
        if not valid:
            raise ValueError(f"{name} must be {rule}, got {value!r}. Pass {prefix}.{name} {usual}.")
