"""Random shifts and crops of images, each run with its own draws.

Images are `(R, ..., C, height, width)` of any type; each image of the batch gets an offset of its own, and all its
channels (the stacked frames) the same one. The pixels are copied, not interpolated: the authors of DrQ-v2 and TD-MPC2
resample with a bilinear grid whose points are exact pixel centres, which is the same picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.noise import Noise


def random_shift(images: Tensor, pad: int, noise: Noise) -> Tensor:
    """Move each image by up to `pad` pixels along both axes; what moves in repeats the border.

    The same as padding by repetition and then cutting the old size out at a random place.

    Args:
        images: (R, ..., C, H, W).
        pad: largest shift in pixels; each axis is drawn uniformly from -pad .. pad.
        noise: R streams.
    """
    return _windows(images, _offsets(images, 2 * pad + 1, noise) - pad, images.shape[-2:])


def random_crop(images: Tensor, size: int, noise: Noise, offsets: int | None = None) -> Tensor:
    """Cut `size` by `size` pixels out of each image at a random place.

    Args:
        images: (R, ..., C, H, W), square.
        size: height and width of the result, at most those of the images.
        noise: R streams.
        offsets: how many offsets of each axis, from 0 on, are drawn from; None: all H - size + 1.

    Returns:
        (R, ..., C, size, size).
    """
    count = images.shape[-1] - size + 1 if offsets is None else offsets
    return _windows(images, _offsets(images, count, noise), (size, size))


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle `size` by `size` pixels of square images (..., H, H); a view."""
    margin = (images.shape[-1] - size) // 2
    return images[..., margin : margin + size, margin : margin + size]


def _offsets(images: Tensor, count: int, noise: Noise) -> Tensor:
    """(R, ..., 2) int64 draws from 0 .. count - 1: an offset down and one to the right for each image."""
    return noise.integers(count, *images.shape[1:-3], 2)


def _windows(images: Tensor, offsets: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Windows of `size` (height, width) with their upper left corner at `offsets` (R, ..., 2).

    Beyond the image its border is repeated. One gather from the images as they are: no padded copy.
    """
    height, width = images.shape[-2:]
    down, right = offsets.flatten(0, -2).unsqueeze(-1).unbind(-2)  # (M, 1)
    rows = (torch.arange(size[0], device=images.device) + down).clamp(0, height - 1)  # (M, size)
    columns = (torch.arange(size[1], device=images.device) + right).clamp(0, width - 1)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (M, size * size)
    flat = images.flatten(-2).flatten(0, -3)  # (M, C, H * W)
    cut = flat.gather(2, pixels[:, None].expand(-1, flat.shape[1], -1))
    return cut.view(*images.shape[:-2], *size)
