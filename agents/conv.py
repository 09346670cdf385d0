"""Convolutions with a leading run axis: R independent networks on images, as `agents.nn` has them on vectors.

Every weight is `(R, ...)`. A layer takes `(R, M, C, height, width)`; M is any flattened batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError


class ConvLayer(NamedTuple):
    """One layer of a `ConvStack`."""

    channels: int
    """Output channels."""
    kernel: int
    """Height and width of the kernel, in pixels."""
    stride: int


class Convolution(nn.Module):
    """What both kinds of convolution are made of.

    Args:
        runs: R.
        inputs: input channels.
        outputs: output channels.
        kernel: height and width of the kernel.
        stride: step of the kernel; transposed, pixels of the output for one of the input.
        padding: zeros added on each side of the image; transposed, pixels cut off there.
        bias: whether to add one.
    """

    bias: nn.Parameter | None
    transposed = False
    """Whether inputs come before outputs in the weight, as torch has it."""
    in_bf16: bool = False
    """Whether it convolves in bfloat16, bias included; gives the type that it takes. See `agents.precision`."""

    def __init__(
        self,
        runs: int,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        device: torch.device | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        channels = (inputs, outputs) if self.transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.zeros(runs, *channels, kernel, kernel, device=device))
        self.register_parameter("bias", nn.Parameter(torch.zeros(runs, outputs, device=device)) if bias else None)

    def _apply_to(self, x: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
        if not self.in_bf16:
            return _for_each_run(convolve, x, self.weight, self.bias, self.stride, self.padding)
        bias = None if self.bias is None else self.bias.bfloat16()
        out = _for_each_run(convolve, x.bfloat16(), self.weight.bfloat16(), bias, self.stride, self.padding)
        return out.to(x.dtype)


class Conv2d(Convolution):
    """R convolutions, `(R, M, in, H, W) -> (R, M, out, H', W')`, H' = (H + 2 padding - kernel) // stride + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(x, F.conv2d)


class ConvTranspose2d(Convolution):
    """R transposed convolutions, `(R, M, in, H, W) -> (R, M, out, H', W')`, H' = (H-1) stride - 2 padding + kernel."""

    transposed = True

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(x, F.conv_transpose2d)


def _for_each_run(
    convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Apply the convolution of each run, weight (R, ...) and bias (R, out) if any, to its own images (R, M, in, H, W).

    On a CPU one call for each run is 1.5 times as fast as one grouped convolution (two and four runs, one core). On a
    GPU the group is one launch; between layers the images then keep its layout, so nothing is copied.
    """
    runs = len(weight)
    if runs == 1:
        own = None if bias is None else bias[0]
        return convolve(x[0], weight[0], own, stride=stride, padding=padding)[None]
    if x.device.type == "cpu":
        members = zip(x, weight, [None] * runs if bias is None else bias, strict=True)
        return torch.stack([convolve(images, w, b, stride=stride, padding=padding) for images, w, b in members])
    return _grouped(convolve, x, weight, bias, stride, padding)


def _grouped(
    convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """All runs in one convolution with R groups of channels; same arguments and result as `_for_each_run`."""
    runs = len(weight)
    images = x.transpose(0, 1).flatten(1, 2)  # (M, R in, H, W)
    flat = None if bias is None else bias.flatten()
    images = convolve(images, weight.flatten(0, 1), flat, stride=stride, padding=padding, groups=runs)
    return images.unflatten(1, (runs, -1)).transpose(0, 1)


class ConvStack(nn.Module):
    """Convolutions without padding and ReLU after each, then flattened: `(R, ..., C, H, W) -> (R, ..., F)`.

    Weights and biases are zero until the agent draws them; `layers` has them in order.

    Args:
        runs: R.
        image_shape: (C, H, W) of one image.
        layers: channels, kernel and stride of each layer.
        activate_last: whether ReLU follows the last layer too.

    Raises:
        UserError: the image is too small for the layers.
    """

    def __init__(
        self,
        runs: int,
        image_shape: Sequence[int],
        layers: Sequence[ConvLayer],
        activate_last: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        channels, *size = image_shape
        smallest = smallest_image(layers)
        if min(size) < smallest:
            raise UserError(
                f"pictures of {min(size)} pixels are too small for these convolutions: image_size must be at least "
                f"{smallest}"
            )
        convs = []
        for layer in layers:
            convs.append(Conv2d(runs, channels, *layer, device=device))
            channels, size = layer.channels, [(pixels - layer.kernel) // layer.stride + 1 for pixels in size]
        self.layers = nn.ModuleList(convs)
        self.activate_last = activate_last
        self.output_shape = (channels, *size)
        """(C', H', W') of the last layer."""
        self.features = channels * size[0] * size[1]
        """C' H' W'."""

    def forward(self, images: Tensor) -> Tensor:
        """Features (R, ..., F) of float images (R, ..., C, H, W), flattened channels first."""
        x = images.flatten(1, -4)  # (R, M, C, H, W)
        if self.layers[0].in_bf16:  # and so they stay from layer to layer: ReLU rounds nothing
            x = x.bfloat16()
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        x = self.layers[-1](x)
        if self.activate_last:
            x = x.relu()
        return x.to(images.dtype).flatten(2).unflatten(1, images.shape[1:-3])


def smallest_image(layers: Sequence[ConvLayer]) -> int:
    """The smallest height or width in pixels that leaves one pixel after all layers."""
    size = 1
    for layer in reversed(layers):
        size = (size - 1) * layer.stride + layer.kernel
    return size
