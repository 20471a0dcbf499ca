"""Images from a diffusion model."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nn.modes import frozen
from lightning_paf.synthesis.generator import ImageGenerator
from lightning_paf.synthesis.samplers import Sampler, settings_of
from lightning_paf.synthesis.unet import Unconditional
from lightning_paf.utils.hashing import weights_fingerprint


class DiffusionGenerator(ImageGenerator):
    """Samples of a diffusion model on images in [-1, 1], returned in [0, 1].

    With guidance w, the prediction is `(1 + w) f(x, t, y) - w f(x, t, null)` (Ho and Salimans 2022): 0 samples from the
    model itself, larger values trade diversity for typical images of the class, at twice the cost.

    Args:
        net: Network from noisy images (N, C, H, W), times (N,) and labels (N,) to the prediction (N, C, H, W); labels
            are None if there are neither classes nor `null_label`. Sampling runs on the device of its parameters.
        process: The noising process of its training, a `DDPMScheduler` (see `noising_process`).
        sampler: Discretisation of the inverse process.
        shape: Channels, height and width of the images.
        num_classes: Number of classes; None for an unconditional model.
        null_label: Label that means no class; None if the network was not trained with one.
        guidance: Weight w of classifier-free guidance.

    Raises:
        ValueError: More sampling than training steps; guidance that is negative, or of a model that is unconditional or
            was trained without label dropout.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Any,
        sampler: Sampler,
        shape: tuple[int, int, int],
        num_classes: int | None = None,
        null_label: int | None = None,
        guidance: float = 0.0,
    ) -> None:
        sampler.check(process.config.num_train_timesteps)
        check_guidance(guidance, num_classes is not None, null_label is not None)
        self.net = net
        self.process = process
        self.sampler = sampler
        self.shape = shape
        self.num_classes = num_classes
        self.null_label = null_label
        self.guidance = guidance

    @torch.no_grad()
    def sample(self, count: int, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """Draw images in one batch of the network; see `ImageGenerator.sample`."""
        self.check_labels(count, labels)
        device = next((parameter.device for parameter in self.net.parameters()), torch.device("cpu"))
        labels = None if labels is None else labels.to(device)
        scheduler, options = self.sampler.prepared(self.process), self.sampler.options(rng)
        x: Tensor = torch.randn(count, *self.shape, generator=rng).to(device) * scheduler.init_noise_sigma
        with frozen(self.net):
            for t in scheduler.timesteps:
                predicted = self._predict(scheduler.scale_model_input(x, t), t, labels)
                x = scheduler.step(predicted, t, x, **options).prev_sample
        return ((x + 1) / 2).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """Return the settings, and a fingerprint of the weights."""
        settings = {f"sampler.{name}": value for name, value in vars(self.sampler).items()}
        settings |= {f"process.{name}": value for name, value in settings_of(self.process).items()}
        return {
            "network": weights_fingerprint(self.net),
            "shape": list(self.shape),
            "null_label": self.null_label,
            "guidance": self.guidance,
            "sampler": type(self.sampler).__name__,
            **settings,
        }

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the guided prediction (N, C, H, W), in float32."""
        null = None if self.null_label is None else torch.full((len(x),), self.null_label, device=x.device)
        times = t.to(x.device).expand(len(x))
        if not self.guidance or labels is None or null is None:
            return self._output(x, times, null if labels is None else labels)
        pair = self._output(torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null]))
        conditional, unconditional = pair.chunk(2)
        return (1 + self.guidance) * conditional - self.guidance * unconditional

    def _output(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        output: Tensor = self.net(x, t, labels)
        return output.float()


def check_guidance(guidance: float, conditional: bool, with_null: bool) -> None:
    """Check the weight of classifier-free guidance.

    Args:
        guidance: The weight; 0 for none.
        conditional: Whether the model has classes.
        with_null: Whether it was trained without labels too.

    Raises:
        ValueError: It is negative or not finite, or the model does not support it.
    """
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be at least 0, got {guidance}. Pass --guidance 0 for none.")
    if guidance and not conditional:
        raise ValueError(f"guidance must be 0 for an unconditional model, got {guidance}. Pass --guidance 0.")
    if guidance and not with_null:
        raise ValueError(
            f"guidance must be 0 for a model that was trained without label dropout, got {guidance}. "
            "Pass --guidance 0, or train with --model.label_dropout 0.1."
        )


def load_pipeline(name: str | Path, sampler: Sampler, device: torch.device | str = "cpu") -> DiffusionGenerator:
    """Load a published unconditional DDPM, such as `google/ddpm-cifar10-32`.

    Only weights in safetensors files and plain configurations are read; no code is executed.

    Args:
        name: Name on the Hugging Face Hub, which is downloaded once, or a folder written by `save_pretrained`.
        sampler: Discretisation of the inverse process.
        device: Device of the network.

    Raises:
        ValueError: There is no such pipeline, it is not a `DDPMPipeline` or `DDIMPipeline` with a `UNet2DModel`, or the
            sampler does not fit its process.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    try:
        # Without the option, a missing package `accelerate` causes a warning.
        pipeline = DDPMPipeline.from_pretrained(str(name), use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # of the network, the Hub, the file system and the content of the files
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{name} must be a diffusion pipeline of the Hugging Face Hub, or a folder with model_index.json and "
            f"safetensors weights, got: {reason} Pass e.g. google/ddpm-cifar10-32."
        ) from error
    unet, settings = pipeline.unet, settings_of(pipeline.scheduler)
    fits = isinstance(unet, UNet2DModel) and {"beta_schedule", "num_train_timesteps"} <= settings.keys()
    if not fits or unet.class_embedding is not None or unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"{name} must be an unconditional DDPM of images, got a {type(unet).__name__} with a "
            f"{type(pipeline.scheduler).__name__}. Pass e.g. google/ddpm-cifar10-32."
        )
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    process = DDPMScheduler.from_config(settings)
    return DiffusionGenerator(
        Unconditional(unet).to(device), process, sampler, (unet.config.in_channels, height, width)
    )
