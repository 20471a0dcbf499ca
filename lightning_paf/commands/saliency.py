"""Show which pixels a model looks at, by its gradients and by perturbing them, and whether the two agree."""

import argparse
import json
from pathlib import Path


def main(argv: list[str]) -> int:
    """Compute both maps, print how good they are, and write picture and JSON file.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: An option makes no sense, or the run cannot be read.
    """
    options, rest = _parse(argv)
    for option in ("grid", "examples"):
        if getattr(options, option) < 1:
            raise ValueError(f"--{option} is at least 1, but is {getattr(options, option)}. Pass --{option} 8.")
    from lightning_paf.analysis.saliency import compare_saliency
    from lightning_paf.analysis.saliency_figure import draw_saliency
    from lightning_paf.loading import load_run
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import explained, write_whole

    run = load_run(options.ckpt, options.config, options.device, rest)
    samples = run.samples(options.examples)
    x, labels = samples.fetch(samples.ids)
    found = compare_saliency(run.model, x, options.grid)
    maps = {"gradient": found.gradient, "perturbation": found.perturbation}
    print(f"Saliency of {len(x)} images, for the predicted class")
    print(f"Overlap of the most salient 30 % of the pixels: mean {found.overlap.mean():.3f} (by chance 0.18)")
    print("Probability while pixels are deleted (small is good) and inserted (large is good), most salient first:")
    for name, one in maps.items():
        print(f"  {name:13} {one.deletion.mean():.3f} {one.insertion.mean():.3f}")
    folder = options.out or options.ckpt.parent.parent / "saliency"
    content = {"label": labels.tolist(), "prediction": found.predictions.tolist(), "overlap": found.overlap.tolist()}
    content |= {f"{name}_{area}": getattr(one, area).tolist() for name, one in maps.items() for area in _AREAS}
    with explained(folder, "the folder of --out"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "saliency.json", (json.dumps(content) + "\n").encode())
        headline = f"{options.ckpt.parent.parent.name}: what the prediction depends on"
        save_figure(draw_saliency(x, found, headline), folder / "saliency.png")
    print(f"Picture and numbers: {folder / 'saliency.png'}, saliency.json")
    return 0


_AREAS = ("deletion", "insertion")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser("lightning-paf saliency", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--examples", type=int, default=100, help="how many test images (default: 100)")
    parser.add_argument(
        "--grid", type=int, default=8, help="points in each direction at which the image is blurred (default: 8)"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: `saliency` in the checkpoint's run)")
    return parser.parse_known_args(argv)
