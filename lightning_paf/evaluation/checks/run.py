"""The list of sanity checks, and their runner.

The checks follow Carlini et al. 2019 ("On evaluating adversarial robustness", section 5) and Athalye et al. 2018. They
find signs of a wrong evaluation: a model that is not robust can pass, and passing does not prove robustness.
"""

from collections.abc import Callable, Sequence

from lightning_paf.evaluation.checks import behaviour, gradients
from lightning_paf.evaluation.checks.context import CheckResult, Context

CHECKS: tuple[Callable[[Context], CheckResult], ...] = (
    behaviour.pixel_range,
    behaviour.train_mode,
    behaviour.finite_outputs,
    behaviour.random_outputs,
    behaviour.batch_dependence,
    behaviour.softmax_outputs,
    behaviour.normalisation,
    behaviour.clean_accuracy,
    gradients.zero_gradients,
    gradients.finite_differences,
    gradients.logit_scale,
    gradients.more_steps,
    gradients.more_starts,
    gradients.smoothed_gradients,
    gradients.growing_eps,
    gradients.black_box,
    gradients.transfer,
)
"""In running order: cheap checks first, searches last."""

PRECONDITIONS = (behaviour.pixel_range, behaviour.finite_outputs, behaviour.clean_accuracy)
"""Checks whose failure makes all later ones meaningless."""


def run_checks(
    context: Context,
    checks: Sequence[Callable[[Context], CheckResult]] = CHECKS,
    progress: Callable[[str], None] = lambda name: None,
) -> list[CheckResult]:
    """Run checks in order; after a failed precondition the others are skipped.

    The model (modes, buffers, `requires_grad`) and the random generators are restored afterwards.

    Args:
        context: Model, samples and threat model.
        checks: Checks to run; the random numbers of each depend only on the seed and its name.
        progress: Called with the name of each check before it starts.

    Returns:
        One result per check, in the same order.
    """
    results: list[CheckResult] = []
    failed = None
    for check in checks:
        name = check.__name__.replace("_", "-")
        if failed:
            results.append(CheckResult(name, None, skipped=f"{failed} failed"))
            continue
        progress(name)
        with context.isolated(name):
            results.append(check(context))
        failed = name if check in PRECONDITIONS and not results[-1].passed else None
    return results
