"""Noising process of diffusion models, and the samplers that invert it."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch

NoiseSchedule = Literal["linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction"]


def noising_process(
    noise: NoiseSchedule = "linear", train_steps: int = 1000, prediction: Prediction = "epsilon"
) -> Any:
    """Build the process that adds noise to images in [-1, 1], a `DDPMScheduler`.

    Args:
        noise: `linear`: variances from 1e-4 to 0.02 for 1000 steps (Ho et al. 2020), scaled by 1000 / train_steps, so
            that the last step leaves noise only; `squaredcos_cap_v2`: squared cosine (Nichol and Dhariwal 2021).
        train_steps: Number of times T.
        prediction: Output of the network: the noise, or v (Salimans and Ho 2022).

    Raises:
        ValueError: `train_steps` below 50, where linear variances would exceed 0.4.
    """
    if train_steps < 50:
        raise ValueError(f"train_steps must be at least 50, got {train_steps}. Pass e.g. --model.train_steps 1000.")
    from diffusers import DDPMScheduler

    scale = 1000 / train_steps
    return DDPMScheduler(
        train_steps, beta_start=1e-4 * scale, beta_end=0.02 * scale, beta_schedule=noise, prediction_type=prediction
    )


class Sampler(ABC):
    """Discretisation of the inverse of a noising process.

    Subclasses name a scheduler of the `diffusers` library, which computes the steps.

    Args:
        steps: Number of steps.

    Raises:
        ValueError: `steps` below 1.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}. Pass e.g. 50.")
        self.steps = steps

    @abstractmethod
    def scheduler(self, process: Any) -> Any:
        """Build the scheduler for a process (see `settings_of`)."""

    def prepared(self, process: Any) -> Any:
        """Return a new scheduler with its time steps, on the CPU."""
        scheduler = self.scheduler(process)
        scheduler.set_timesteps(self.steps)
        return scheduler

    def options(self, rng: torch.Generator) -> dict[str, Any]:
        """Return further arguments of the scheduler's `step`."""
        del rng
        return {}

    def check(self, train_steps: int) -> None:
        """Check that the sampler can use a process of `train_steps` times.

        Raises:
            ValueError: It has more steps.
        """
        if self.steps > train_steps:
            raise ValueError(
                f"steps must be at most {train_steps}, the training steps of the diffusion model, got {self.steps}. "
                f"Pass {train_steps} or fewer."
            )


class DDPM(Sampler):
    """Ancestral sampler of Ho et al. (2020), which adds noise in every step.

    Args:
        steps: Number of steps, each with one pass of the network.
    """

    def __init__(self, steps: int = 1000) -> None:
        super().__init__(steps)

    def scheduler(self, process: Any) -> Any:
        """Build the scheduler of the same process."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(settings_of(process), timestep_spacing="trailing")

    def options(self, rng: torch.Generator) -> dict[str, Any]:
        """Return the generator of the added noise."""
        return {"generator": rng}


class DDIM(Sampler):
    """Sampler of Song, Meng, Ermon (2021), deterministic after the initial noise.

    Args:
        steps: Number of steps, each with one pass of the network; a divisor of the training steps.
        eta: Noise added in every step, relative to that of DDPM.

    Raises:
        ValueError: `eta` outside [0, 1].
    """

    def __init__(self, steps: int = 50, eta: float = 0.0) -> None:
        super().__init__(steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}. Pass 0 for a deterministic sampler.")
        self.eta = eta

    def scheduler(self, process: Any) -> Any:
        """Build the scheduler of the same process."""
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(settings_of(process), timestep_spacing="trailing")

    def options(self, rng: torch.Generator) -> dict[str, Any]:
        """Return `eta` and the generator of the added noise."""
        return {"eta": self.eta, "generator": rng}

    def check(self, train_steps: int) -> None:
        """Check that the steps divide the training steps.

        Otherwise the times of the scheduler would differ from the noise levels of its images.

        Raises:
            ValueError: They do not.
        """
        super().check(train_steps)
        if train_steps % self.steps:
            divisor = next(steps for steps in range(self.steps, 0, -1) if train_steps % steps == 0)
            raise ValueError(
                f"steps of DDIM must divide the {train_steps} training steps of the diffusion model, got {self.steps}. "
                f"Pass e.g. {divisor}."
            )


class Heun(Sampler):
    """Deterministic sampler of second order of Karras, Aittala, Aila, Laine (2022).

    Heun's method on the probability-flow ODE, with noise levels
    `(max^(1/7) + i / (steps - 1) (min^(1/7) - max^(1/7)))^7` and a last Euler step to 0.

    Args:
        steps: Number of steps; the network makes `2 steps - 1` passes.
    """

    def __init__(self, steps: int = 18) -> None:
        super().__init__(steps)

    def scheduler(self, process: Any) -> Any:
        """Build the scheduler of the same process."""
        from diffusers import HeunDiscreteScheduler

        return HeunDiscreteScheduler.from_config(
            settings_of(process), use_karras_sigmas=True, timestep_spacing="linspace"
        )


def settings_of(process: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler, for a scheduler of another class.

    The list of values that are defaults is left out; the other class has other defaults.
    """
    return {name: value for name, value in process.config.items() if not name.startswith("_")}
