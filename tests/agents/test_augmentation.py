"""Shifts and crops against loops over pixels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from agents.augmentation import centre_crop, random_crop, random_shift
from agents.noise import Noise

CPU = torch.device("cpu")
SEEDS = [1, 2, 3]


def noise(seeds=SEEDS):
    return Noise(seeds, "learn", CPU)


def pictures(*batch, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*batch, 4, size, size), generator=generator, dtype=torch.uint8)


def cut(image, down, right, size):
    """Pixel by pixel, the border repeated beyond the image."""
    height, width = image.shape[1:]
    out = torch.empty(image.shape[0], size, size, dtype=image.dtype)
    for row in range(size):
        for column in range(size):
            y, x = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
            out[:, row, column] = image[:, y, x]
    return out


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_a_shift_is_that_of_a_loop_over_pixels(batch):
    images = pictures(3, *batch)
    shifted = random_shift(images, 2, noise())
    offsets = noise().integers(5, *batch, 2).flatten(1, -2)
    assert shifted.dtype == images.dtype
    assert shifted.shape == images.shape
    for run in range(3):
        for image, result, (down, right) in zip(
            images[run].flatten(0, -4), shifted[run].flatten(0, -4), offsets[run].tolist(), strict=True
        ):
            assert torch.equal(result, cut(image, down - 2, right - 2, 8))


def test_a_shift_is_a_bilinear_resampling_of_the_padded_picture():
    """The formulation of the authors: a grid of pixel centres over the padded image, moved by whole pixels."""
    images, pad, size = pictures(1, 6).float(), 3, 8
    offsets = noise([1]).integers(2 * pad + 1, 6, 2)[0]
    padded = F.pad(images[0], (pad,) * 4, mode="replicate")
    whole = size + 2 * pad
    centres = (2 * torch.arange(size) + 1) / whole - 1
    down, right = (2 * offsets[:, axis, None] / whole + centres for axis in (0, 1))  # (6, size)
    grid = torch.stack([right[:, None].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], -1)
    expected = F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(random_shift(images, pad, noise([1]))[0], expected, rtol=0, atol=0.01)


def test_every_shift_happens_and_no_other():
    image = torch.arange(49.0).view(1, 1, 1, 7, 7).expand(1, 2000, -1, -1, -1)
    centres = random_shift(image, 1, noise([5]))[0, :, 0, 3, 3]
    values, counts = centres.unique(return_counts=True)
    assert values.tolist() == [16, 17, 18, 23, 24, 25, 30, 31, 32]
    assert counts.min() > 160  # 222 expected, standard deviation 14


@pytest.mark.parametrize("offsets", [None, 2])
def test_a_crop_is_a_window_of_the_picture(offsets):
    images = pictures(3, 40)
    crops = random_crop(images, 6, noise(), offsets)
    drawn = noise().integers(3 if offsets is None else offsets, 40, 2)
    for run in range(3):
        for image, crop, (down, right) in zip(images[run], crops[run], drawn[run].tolist(), strict=True):
            assert torch.equal(crop, image[:, down : down + 6, right : right + 6])
    assert drawn.max() == (2 if offsets is None else 1)


def test_the_centre_is_in_the_middle():
    images = pictures(2, 3, size=10)
    assert torch.equal(centre_crop(images, 8), images[..., 1:9, 1:9])
    assert torch.equal(centre_crop(images, 10), images)


def test_a_run_is_moved_the_same_in_any_fleet():
    images = pictures(3, 5)
    fleet = random_shift(images, 2, noise())
    assert not torch.equal(fleet[0], fleet[1])
    for run, seed in enumerate(SEEDS):
        assert torch.equal(random_shift(images[run : run + 1], 2, noise([seed]))[0], fleet[run])
