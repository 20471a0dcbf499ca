"""Attack the same images from many random starts, and show whether the final losses agree."""

import argparse
import json
from pathlib import Path


def main(argv: list[str]) -> int:
    """Attack, print, and write histogram and JSON file.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: An option makes no sense, or the run cannot be read.
    """
    options, rest = _parse(argv)
    import torch
    from rich.console import Console

    from lightning_paf.analysis.concentration import concentration, spread_text
    from lightning_paf.analysis.concentration_figure import draw_concentration
    from lightning_paf.attacks import PGD, radius_text
    from lightning_paf.loading import load_run
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import explained, write_whole

    console = Console(stderr=True, highlight=False)
    with console.status("reading the run") as status:
        run = load_run(options.ckpt, options.config, options.device, rest)
        trained = run.module.attack
        eps = trained.eps if options.eps is None else options.eps
        samples = run.samples(options.examples)
        attack = PGD(eps, step_size=2.5 * float(eps) / options.steps, steps=options.steps, norm=trained.norm)
        torch.manual_seed(options.seed)
        found = concentration(run.model, *samples.fetch(samples.ids), attack, options.starts, status.update)
    spread, outlier = found.spread, found.outlier
    print(f"{options.starts} starts of PGD-{options.steps} on {len(samples)} images, {trained.norm} {radius_text(eps)}")
    print(f"Mean loss: clean {found.clean.mean():.3f}, attacked {found.losses.mean():.3f}")
    print(f"Spread of the final losses (standard deviation / mean): median {spread_text(float(spread.median()))}")
    print(f"Best start above the mean, in standard deviations: median {outlier.median():.1f}, most {outlier.max():.1f}")
    print(f"Distance of two results of one image: {found.distance.mean():.2f} eps (2 is the most)")
    folder = options.out or options.ckpt.parent.parent / "concentration"
    with explained(folder, "the folder of --out"):
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: getattr(found, name).tolist() for name in ("losses", "clean", "distance")}
        write_whole(folder / "concentration.json", (json.dumps(content) + "\n").encode())
        headline = f"{options.ckpt.parent.parent.name}: final losses of {options.starts} starts (dashed: clean image)"
        save_figure(draw_concentration(found, headline), folder / "concentration.png")
    print(f"Picture and numbers: {folder / 'concentration.png'}, concentration.json")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser("lightning-paf concentration", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--examples", type=int, default=20, help="how many test images (default: 20)")
    parser.add_argument("--starts", type=int, default=100, help="attacks of each image (default: 100)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each attack (default: 20)")
    parser.add_argument("--eps", type=float, help="default: that of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: `concentration` in the checkpoint's run)"
    )
    return parser.parse_known_args(argv)
