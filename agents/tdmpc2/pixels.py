"""The encoder of TD-MPC2 for images: four convolutions on a randomly shifted picture, then SimNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.activations import simnorm
from agents.augmentation import random_shift
from agents.conv import Conv2d, ConvLayer, ConvStack
from agents.noise import Noise
from agents.protocol import AgentSpec
from agents.tdmpc2.hyperparameters import Hyperparameters
from bench.errors import UserError

SHIFT_PIXELS = 3


class PixelEncoder(nn.Module):
    """R encoders of images (R, ..., C, size, size) uint8 into latent states (R, ..., L).

    There is no dense layer, so the size of the image decides the size of the latent state: 512 for 64 pixels.

    Args:
        runs: R.
        spec: with the shape of the images.
        hp: channels, latent size, groups of SimNorm.
        device: where the parameters live.

    Raises:
        UserError: the latent size is not that of the flattened features.
    """

    def __init__(self, runs: int, spec: AgentSpec, hp: Hyperparameters, device: torch.device) -> None:
        super().__init__()
        self.simnorm_dim = hp.simnorm_dim if hp.simnorm else 0
        channels = hp.num_channels
        layers = [ConvLayer(channels, *layer) for layer in ((7, 2), (5, 2), (3, 2), (3, 1))]
        self.convs = ConvStack(runs, spec.obs_shape, layers, activate_last=False, device=device)
        if self.convs.features != hp.latent_dim:
            raise UserError(
                f"tdmpc2: images of {spec.obs_shape[-1]} pixels give {self.convs.features} features with "
                f"num_channels = {channels}, and latent_dim is {hp.latent_dim}: set latent_dim="
                f"{self.convs.features} (64 pixels need model_size 5)"
            )

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """PyTorch's own for convolutions: uniform within 1 / sqrt(inputs of an output), weights and biases."""
        for layer in self.convs.layers:
            assert isinstance(layer, Conv2d)
            bound = 1 / math.sqrt(layer.weight[0, 0].numel())
            for parameter in layer.parameters():
                for part, generator in zip(parameter, generators, strict=True):
                    part.copy_((torch.rand(part.shape, generator=generator) * 2 - 1) * bound)

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        """z (R, ..., L). Each picture is shifted by a draw of its own, when acting too, as the authors do."""
        shifted = random_shift(images, SHIFT_PIXELS, noise)
        z: Tensor = self.convs(shifted / 255 - 0.5)
        return simnorm(z, self.simnorm_dim) if self.simnorm_dim > 0 else z
