"""CURL: soft actor-critic from pixels whose encoder also learns to tell crops of one observation from others.

Laskin, Srinivas, Abbeel 2020 (arXiv 2004.04136), with the networks, constants and order of updates of the authors'
code. Kept although they look like slips, since the published results were made with them:
- the encoder takes two steps on the contrastive loss: two Adams, with moments of their own, step on the same gradient
  (and a third one on the critics' loss);
- random crops never lie at the last offset of an axis;
- the bilinear similarity starts from a matrix uniform in [0, 1), of 50 x 50 (their option for its size has no effect).

What differs:
- evaluation has environments of its own (theirs evaluates in the training environment, which spoils an episode where
  the interval is no multiple of its length);
- the density of an action is computed without the 1e-6 that theirs adds against log 0;
- an update follows the environment's step instead of preceding it, as everywhere in this suite, and the action repeat
  is the task table's.

Shapes: R runs, N environments, B batch, Z features of an observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.augmentation import centre_crop, random_crop
from agents.precision import in_own_precision
from agents.protocol import AgentSpec, Batch
from baselines.hyperparameters.curl import CURL as CURLHyperparameters
from baselines.sac import SAC
from bench.seeding import derive_seed


def contrastive_loss(query: Tensor, key: Tensor, similarity: Tensor) -> Tensor:
    """InfoNCE: the cross-entropy of telling, for each query, its own key from those of the rest of the batch.

    Args:
        query: (R, B, Z).
        key: (R, B, Z); key b is the positive of query b.
        similarity: (R, Z, Z), the bilinear form W of the logits q W k.

    Returns:
        (R,), the mean over the batch.
    """
    logits = query @ similarity @ key.transpose(1, 2)  # (R, B, B)
    return -logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)


class CURL(SAC):
    """CURL on the agent protocol."""

    name: ClassVar = "curl"
    Hyperparameters: ClassVar = CURLHyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("rgb",)

    hyperparameters: CURLHyperparameters

    def __init__(
        self, spec: AgentSpec, hyperparameters: CURLHyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        hp = hyperparameters
        seen = replace(spec, obs_shape=(*spec.obs_shape[:-2], hp.crop_size, hp.crop_size))
        super().__init__(seen, hp, seeds, device)
        generators = [torch.Generator().manual_seed(derive_seed(seed, "similarity")) for seed in seeds]
        uniform = [torch.rand(hp.feature_dim, hp.feature_dim, generator=generator) for generator in generators]
        self.similarity = nn.Parameter(torch.stack(uniform).to(device))
        self.encoder_optimizer = torch.optim.Adam(self.encoder_parameters, lr=hp.encoder_lr, fused=True)
        self.contrastive_optimizer = torch.optim.Adam(
            [*self.encoder_parameters, self.similarity], lr=hp.encoder_lr, fused=True
        )

    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, C, H, W) -> (R, N, A): as soft actor-critic, from the middle of the pictures."""
        return super().act(centre_crop(obs, self.hyperparameters.crop_size), first, explore)

    @in_own_precision
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """The update of soft actor-critic on random crops, then the contrastive one."""
        obs, next_obs = batch.obs.unbind(1)  # (R, B, C, H, W)
        anchor, next_crop, positive = self.crop(obs), self.crop(next_obs), self.crop(obs)
        metrics = self.learn(anchor, next_crop, batch)
        return {**metrics, "contrastive_loss": self.contrast(anchor, positive)}

    def crop(self, images: Tensor) -> Tensor:
        """Random crops (R, B, C, size, size), each image's at a place of its own."""
        hp = self.hyperparameters
        # The authors draw from image_size - crop_size offsets, one fewer than there are.
        return random_crop(images, hp.crop_size, self.learn_noise, max(hp.image_size - hp.crop_size, 1))

    def contrast(self, anchor: Tensor, positive: Tensor) -> Tensor:
        """One step of the similarity and two of the critics' encoder on the contrastive loss; gives it, (R,).

        Args:
            anchor: (R, B, C, H, W), seen by the critics' encoder.
            positive: another crop of each, seen by its slow copy.
        """
        with torch.no_grad():
            key = self.target.trunk(self.target_encoder(positive))  # (R, B, Z)
        loss = contrastive_loss(self.critic.trunk(self.encoder(anchor)), key, self.similarity)
        self.contrastive_optimizer.zero_grad()  # the encoder's gradients too, left by the critics' loss
        loss.sum().backward()
        self.encoder_optimizer.step()
        self.contrastive_optimizer.step()
        return loss.detach()

    # States

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        own = {name: getattr(self, name) for name in ("encoder_optimizer", "contrastive_optimizer")}
        return {**super()._optimizers(), **own}

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {**super().state_dict(run), "similarity": self.similarity[run].detach().cpu().clone()}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order; see `SAC.load_state_dict`."""
        super().load_state_dict(states)
        with torch.no_grad():
            self.similarity.copy_(torch.stack([state["similarity"] for state in states]))
