"""Profile of the convolutions' weights: how many vanish, how unequal the others are (the Min-Max property)."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def main(argv: list[str]) -> int:
    """Print one line a layer, and write picture and JSON file.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: The run cannot be read, or its network has no convolution.
    """
    options, rest = _parse(argv)
    from lightning_paf.analysis.min_max import convolutions, draw_weights, min_max_profile
    from lightning_paf.loading import load_run
    from lightning_paf.utils.figures import save_figure
    from lightning_paf.utils.files import explained, write_whole

    run = load_run(options.ckpt, options.config, options.device, rest)
    weights = convolutions(run.model.net)
    if not weights:
        raise ValueError(f"{type(run.model.net).__name__} has no convolution. Pass a run of a network that has some.")
    profiles = {name: min_max_profile(weight) for name, weight in weights.items()}
    width = max(map(len, profiles))
    print(f"{'':{width}} vanishing  kurtosis   Gini  |w|1/|w|2")
    for name, found in profiles.items():
        print(
            f"{name:{width}} {100 * found.vanishing:8.1f}% {found.kurtosis:9.2f} {found.gini:6.3f} {found.ratio:10.2f}"
        )
    folder = options.out or options.ckpt.parent.parent / "min_max"
    with explained(folder, "the folder of --out"):
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: asdict(found) for name, found in profiles.items()}
        write_whole(folder / "min_max.json", (json.dumps(content, indent=2) + "\n").encode())
        headline = f"{options.ckpt.parent.parent.name}: weights of the convolutions"
        save_figure(draw_weights(weights, headline), folder / "min_max.png")
    print(f"Picture and numbers: {folder / 'min_max.png'}, min_max.json")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser("lightning-paf min-max", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder to write to (default: `min_max` in the checkpoint's run)")
    return parser.parse_known_args(argv)
