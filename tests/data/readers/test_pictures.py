"""Decoding of encoded images: JPEG by torchcodec, torchvision or Pillow, all others by Pillow."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lightning_paf.data.readers import pictures


def encoded(mode: str, kind: str, size: tuple[int, int] = (24, 16)) -> bytes:
    """Encode a smooth image of this size (W, H)."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    content = io.BytesIO()
    image = Image.fromarray(np.stack([x, y, (x + y) / 2], 2).astype(np.uint8))
    image.convert(mode).save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return content.getvalue()


@pytest.fixture
def without(monkeypatch):
    """Hides decoders of JPEG; they are looked up again in this test and after it."""

    def hide(*names: str) -> None:
        if "torchcodec" in names:
            monkeypatch.setitem(sys.modules, "torchcodec", None)
        if "torchvision" in names:
            monkeypatch.delattr(torchvision.io, "decode_jpeg")

    pictures._jpeg_decoder.cache_clear()
    yield hide
    pictures._jpeg_decoder.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_the_same_by_pillow_and_torchvision(mode, channels, without, monkeypatch):
    """Rounding of luma differs by a few levels."""
    content = encoded(mode, "JPEG")
    without("torchcodec")
    assert pictures._jpeg_decoder() is not None
    fast = pictures.decoded(content, channels)
    pictures._jpeg_decoder.cache_clear()
    without("torchcodec", "torchvision")
    assert pictures._jpeg_decoder() is None
    slow = pictures.decoded(content, channels)
    assert fast.shape == slow.shape == (16, 24, channels)
    assert fast.dtype == slow.dtype == np.uint8
    np.testing.assert_allclose(fast.astype(int), slow, atol=3)
    assert slow.std() > 20, "a picture, not a constant"


def test_torchcodec_comes_first_and_pillow_reads_what_it_cannot(without, monkeypatch):
    def decode_jpeg(content, mode):
        if len(content) > 1000:
            raise RuntimeError("unsupported")
        return torch.full((3, 2, 4), 7, dtype=torch.uint8)

    module = ModuleType("torchcodec")
    module.decoders = SimpleNamespace(decode_jpeg=decode_jpeg)
    monkeypatch.setitem(sys.modules, "torchcodec", module)
    small, large = encoded("RGB", "JPEG", (8, 8)), encoded("RGB", "JPEG", (400, 300))
    assert len(small) < 1000 < len(large)
    assert (pictures.decoded(small, 3) == np.full((2, 4, 3), 7)).all()
    assert pictures.decoded(large, 3).shape == (300, 400, 3)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("P", 3), ("LA", 1), ("1", 1), ("L", 1)])
def test_a_png_has_the_channels_of_its_mode_without_transparency(mode, channels):
    content = encoded(mode, "PNG")
    with Image.open(io.BytesIO(content)) as image:
        assert pictures.channels_of(image) == channels
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pictures.decoded(content, 3), expected)
