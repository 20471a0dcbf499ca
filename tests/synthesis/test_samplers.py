"""Noising processes and samplers against closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from lightning_paf.synthesis.samplers import DDIM, DDPM, Heun, noising_process

PROCESSES = [
    noising_process(),
    noising_process("squaredcos_cap_v2", 200, "v_prediction"),
    DDPMScheduler(100),  # with the values of the class, which another class must not replace by its own
]


def test_the_signal_of_linear_variances_is_their_product():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(noising_process().alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [50, 100, 4000])
def test_linear_variances_leave_noise_only_for_any_number_of_steps(steps):
    assert float(noising_process(train_steps=steps).alphas_cumprod[-1]) < 1e-4


def test_the_signal_of_the_cosine_schedule():
    times = torch.arange(1, 200, dtype=torch.float64) / 200
    levels = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    expected = levels / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    found = noising_process("squaredcos_cap_v2", 200).alphas_cumprod[:199].double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", [DDPM(10), DDIM(10), Heun(10)], ids=lambda sampler: type(sampler).__name__)
def test_a_sampler_inverts_the_process_of_the_training(sampler, process):
    scheduler = sampler.prepared(process)
    assert torch.equal(scheduler.alphas_cumprod, process.alphas_cumprod)
    for name in ("prediction_type", "clip_sample", "num_train_timesteps"):
        assert scheduler.config[name] == process.config[name]
    assert float(scheduler.timesteps[0]) == process.config.num_train_timesteps - 1


def test_heun_has_the_noise_levels_of_karras():
    steps, signal = 9, noising_process().alphas_cumprod.double()
    least, most = (((1 - level) / level).sqrt() for level in (signal[0], signal[-1]))
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    expected = (most ** (1 / 7) + ramp * (least ** (1 / 7) - most ** (1 / 7))) ** 7
    scheduler = Heun(steps).prepared(noising_process())
    torch.testing.assert_close(scheduler.sigmas[::2].double(), expected, rtol=1e-3, atol=0)
    assert scheduler.sigmas[-1] == 0
    assert len(scheduler.timesteps) == 2 * steps - 1


def test_ddim_steps_are_even():
    assert DDIM(5).prepared(noising_process()).timesteps.tolist() == [999, 799, 599, 399, 199]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DDPM(0), "steps must be at least 1, got 0"),
        (lambda: DDIM(eta=2), r"eta must be in \[0, 1\], got 2"),
        (lambda: DDIM(30).check(100), "steps of DDIM must divide the 100 training steps .* got 30. Pass e.g. 25"),
        (lambda: Heun(101).check(100), "steps must be at most 100, .* got 101"),
        (lambda: noising_process(train_steps=49), "train_steps must be at least 50, got 49"),
    ],
)
def test_bad_numbers_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
