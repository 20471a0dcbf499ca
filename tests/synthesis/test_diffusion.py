"""Sampling with the exact denoiser of a distribution, guidance, and published pipelines."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.two_points import NULL, POINTS, SHAPE, WEIGHTS, ExactDenoiser
from torch import nn

from lightning_paf.synthesis.diffusion import DiffusionGenerator, load_pipeline
from lightning_paf.synthesis.samplers import DDIM, DDPM, Heun, noising_process

PROCESS = noising_process()
SAMPLERS = [DDPM(100), DDIM(50), DDIM(50, eta=1.0), Heun(18)]
N = 2000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def name(sampler) -> str:
    return f"{type(sampler).__name__}{getattr(sampler, 'eta', '')}"


def exact(sampler, **options) -> DiffusionGenerator:
    return DiffusionGenerator(ExactDenoiser(PROCESS), PROCESS, sampler, SHAPE, **options)


def nearest(images):
    """The index of the nearer point (N,), and the largest distance of a pixel to it."""
    distances = (images.flatten(1)[:, None] - POINTS[None, :, None]).abs().amax(2)
    return distances.argmin(1), distances.amin(1).max().item()


@pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=lambda sampler: f"{type(sampler).__name__}{getattr(sampler, 'eta', '')}"
)
def test_the_exact_denoiser_samples_two_points_with_their_weights(sampler):
    images = exact(sampler).sample(N, None, rng())
    assert (images.dtype, images.shape) == (torch.float32, (N, *SHAPE))
    assert 0 <= images.min() <= images.max() <= 1
    found, distance = nearest(images)
    assert distance < 0.02
    error = math.sqrt(WEIGHTS.prod().item() / N)
    assert (found == 0).float().mean().item() == pytest.approx(WEIGHTS[0].item(), abs=4 * error)


@pytest.mark.parametrize("sampler", [DDIM(20), Heun(10)], ids=lambda sampler: type(sampler).__name__)
def test_a_class_is_its_point(sampler):
    labels = torch.arange(100) % 2
    found, distance = nearest(exact(sampler, num_classes=2, null_label=NULL).sample(100, labels, rng()))
    assert torch.equal(found, labels)
    assert distance < 0.02
    guided = exact(sampler, num_classes=2, null_label=NULL, guidance=1.5).sample(100, labels, rng())
    assert torch.equal(nearest(guided)[0], labels)


class Affine(nn.Module):
    """Predicts the label, plus the time."""

    def forward(self, x, t, labels):
        return (10.0 * labels + t).view(-1, 1, 1, 1).expand_as(x)


def test_guidance_extrapolates_from_no_class_to_the_class():
    generator = DiffusionGenerator(Affine(), PROCESS, DDIM(), SHAPE, 2, NULL, guidance=0.5)
    labels = torch.tensor([0, 1])
    predicted = generator._predict(torch.zeros(2, *SHAPE), torch.tensor(7), labels)[:, 0, 0, 0]
    assert predicted.tolist() == [1.5 * (10 * y + 7) - 0.5 * (10 * NULL + 7) for y in (0, 1)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_the_same_seed_draws_the_same_images(sampler):
    generator = exact(sampler)
    first, again, other = (generator.sample(5, None, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ancestral_noise_comes_from_the_given_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    exact(DDPM(10)).sample(5, None, rng())
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_with_their_own_seeds_do_not_depend_on_each_other():
    generator = exact(DDPM(10))
    blocks = [generator.sample(4, None, rng(seed)) for seed in range(3)]
    for seed in (2, 0, 1):
        assert torch.equal(generator.sample(4, None, rng(seed)), blocks[seed])


def test_a_network_keeps_its_mode():
    net = nn.Sequential(ExactDenoiser(PROCESS))
    net.forward = lambda x, t, labels: net[0](x, t)
    DiffusionGenerator(net.train(), PROCESS, DDIM(2), SHAPE).sample(1, None, rng())
    assert net.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance": 1.0}, "guidance must be 0 for an unconditional model, got 1.0. Pass --guidance 0"),
        ({"guidance": 1.0, "num_classes": 2}, "guidance must be 0 for a model .* without label dropout, got 1.0"),
        ({"guidance": -1.0, "num_classes": 2, "null_label": 2}, "guidance must be at least 0, got -1.0"),
        ({"sampler": DDPM(1001)}, "steps must be at most 1000, .* got 1001"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        exact(**{"sampler": DDIM(), **options})


@pytest.mark.parametrize(
    ("num_classes", "count", "labels", "words"),
    [
        (None, 0, None, "count must be at least 1, got 0"),
        (None, 1, torch.tensor([0]), "labels must be None for an unconditional generator, got 1"),
        (2, 1, None, "labels must be 1 classes below 2, got None"),
        (2, 2, torch.tensor([0]), "labels must be 2 int64 classes"),
        (2, 2, torch.tensor([0, 2]), "labels must be 2 int64 classes from 0 to 1, got .* from 0 to 2"),
        (2, 2, torch.tensor([0.0, 1.0]), "labels must be 2 int64 classes from 0 to 1, got torch.float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(num_classes, count, labels, words):
    with pytest.raises(ValueError, match=words):
        exact(DDIM(2), num_classes=num_classes).sample(count, labels, rng())


def save_pipeline(folder, scheduler=None, safe=True, **options):
    torch.manual_seed(0)
    unet = UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8,),
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            **options,
        }
    )
    pipeline = DDPMPipeline(unet, scheduler or DDPMScheduler(100, variance_type="fixed_large"))
    pipeline.save_pretrained(folder, safe_serialization=safe)
    return pipeline


def test_a_pipeline_samples_as_the_library_does(tmp_path):
    pipeline = save_pipeline(tmp_path)
    generator = load_pipeline(tmp_path, DDPM(100))
    assert (generator.shape, generator.num_classes) == ((1, 8, 8), None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, generator=rng(), num_inference_steps=100, output_type="np").images
    found = generator.sample(2, None, rng()).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_a_pipeline_with_another_scheduler_has_its_process(tmp_path):
    save_pipeline(tmp_path, DDIMScheduler(200, beta_schedule="squaredcos_cap_v2"))
    process = load_pipeline(tmp_path, Heun(3)).process
    assert torch.equal(process.alphas_cumprod, noising_process("squaredcos_cap_v2", 200).alphas_cumprod)


def test_unknown_pipelines_are_refused_in_one_sentence(tmp_path):
    for name in ("no/such/pipeline", tmp_path, tmp_path / "missing"):
        with pytest.raises(
            ValueError, match=r"must be a diffusion pipeline of the Hugging Face Hub, or a folder"
        ) as at:
            load_pipeline(name, DDIM())
        assert "\n" not in str(at.value)


def test_pickled_weights_are_refused(tmp_path):
    save_pipeline(tmp_path, safe=False)
    with pytest.raises(ValueError, match="safetensors"):
        load_pipeline(tmp_path, DDIM())


def test_a_conditional_pipeline_is_refused(tmp_path):
    save_pipeline(tmp_path, num_class_embeds=3)
    with pytest.raises(ValueError, match="must be an unconditional DDPM of images, got a UNet2DModel"):
        load_pipeline(tmp_path, DDIM())


def test_a_pipeline_with_fewer_steps_is_refused_before_sampling(tmp_path):
    save_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"steps must be at most 100, .* got 101"):
        load_pipeline(tmp_path, DDPM(101))
