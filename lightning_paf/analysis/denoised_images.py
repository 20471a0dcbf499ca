"""Draw a test photograph with noise and ObsAtk, denoised by several runs."""

import argparse
from itertools import islice

from lightning_paf.analysis.base import Load, Progress, Report, add_folder, folder_files, table
from lightning_paf.evaluation.denoising import denoised, draw_denoised, scores, without_uniform
from lightning_paf.runs.config_file import run_of
from lightning_paf.utils.arguments import number

CHECKPOINTS = "+"
KIND = "denoiser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze denoised-images`."""
    parser.add_argument(
        "--photograph", type=number(int, least=0), default=0, help="index of the photograph (default: 0)"
    )
    add_folder(parser, "denoised-images")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Denoise a photograph, attacked for each run, at its last noise level."""
    rows, found = [], []
    for checkpoint in options.ckpt:
        progress(f"reading {checkpoint}")
        run = load(checkpoint)
        name = f"{run_of(checkpoint).name} ({type(run.module.objective).__name__})"
        batch = next(islice(run.datamodule.test_batches(), options.photograph, None), None)
        if batch is None:
            raise ValueError(
                f"--photograph must be below the number of test photographs, got {options.photograph}. Pass "
                "--photograph 0."
            )
        progress(f"denoising by {name}")
        *_, (_, clean, noisy) = run.module.observed(batch)
        shown = without_uniform(noisy)
        rows.append((name, clean, shown, run.module.model))
        found.append({c: dict(scores(denoised(run.module.model, x), x, clean)) for c, x in shown.items()})
    if any(one.keys() != found[0].keys() for one in found):
        raise ValueError(
            f"All runs must have the same noise, got {[[*one] for one in found]}. Pass --model.sigmas '[25]'."
        )
    texts = [[f"{s['noisy_psnr']:.2f} to {s['psnr']:.2f}" for s in one.values()] for one in found]
    lines = ["PSNR (dB) before and after denoising", ""]
    lines += table(("run", *found[0]), *((row[0], *text) for row, text in zip(rows, texts, strict=True)))
    content = [{"run": row[0], **one} for row, one in zip(rows, found, strict=True)]
    figure = draw_denoised(rows, run.module.headline())
    return Report(lines, folder_files("denoised-images", options.out, options.ckpt[0], content, figure))
