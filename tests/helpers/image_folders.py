"""Small folders of image files."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def write_image_folder(
    root: Path, mode: str = "RGB", size: tuple[int, int] = (48, 64), counts: dict[str, int] | None = None
) -> Path:
    """Write `root/PART/CLASS/I.png` and `.jpg`, whose classes differ in brightness; `size` is (H, W)."""
    rng = np.random.default_rng(0)
    for part, count in (counts or {"train": 8, "test": 4}).items():
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(40 + 80 * label + rng.integers(-20, 20, (*size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{number}.{('png', 'jpg')[number % 2]}")
    return root
