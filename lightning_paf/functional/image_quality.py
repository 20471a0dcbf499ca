"""Distance of restored images from the originals."""

from torch import Tensor


def psnr(image: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `-10 log10(MSE)` of images (N, C, H, W) in [0, 1].

    Returns:
        In dB, (N,); infinite for equal images.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(image, original, 1.0, reduction="none", dim=(1, 2, 3))


def ssim(image: Tensor, original: Tensor) -> Tensor:
    """Structural similarity of images (N, C, H, W) in [0, 1], H, W >= 11.

    The window is Gaussian with standard deviation 1.5, cut off at 11 pixels.

    Returns:
        In [-1, 1], (N,); 1 for equal images.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(image, original, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found
