"""Networks between images and sequences of patches: the convolutional stem of Appendix B.1, and a decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import init_linear_


def check_image(image: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the rows and columns of patches. Raises ConfigError unless the patches tile the image."""
    rows, columns = image
    if rows % patch or columns % patch:
        raise ConfigError(f"patches of {patch} x {patch} pixels do not tile an image of {rows} x {columns}")
    return rows // patch, columns // patch


class PatchEncoder(nn.Module):
    """Apply two convolutions (5x5, SiLU, GroupNorm), then embed each patch as one position.

    ``int64 [..., rows * columns] -> [..., L, D]``.

    Args:
        image: rows and columns.
        patch: side of a patch.
        classes: number of pixel values, which are scaled to [-1, 1].
        channels: channels of the convolutions.
        width: D.
    """

    def __init__(self, image: tuple[int, int], patch: int, classes: int, channels: int, width: int) -> None:
        super().__init__()
        check_image(image, patch)
        self.image, self.patch, self.classes = image, patch, classes
        groups = max(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
        )
        self.project = init_linear_(nn.Linear(channels * patch**2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        batch = pixels.shape[:-1]
        x = pixels.reshape(-1, 1, *self.image).to(self.project.weight.dtype) * (2 / max(1, self.classes - 1)) - 1
        patches = F.unfold(self.stem(x), self.patch, stride=self.patch).transpose(1, 2)  # [B, L, channels * patch^2]
        return self.project(patches).view(*batch, patches.shape[1], -1)


class PatchDecoder(nn.Module):
    """Compute logits of each pixel by two convolutions. ``[..., L, D] -> [..., rows * columns, classes]``.

    It takes the last positions of h, as :class:`~pyro_gram.networks.embeddings.TokenDecoder` does. Convolutions let
    neighbouring patches agree on shared strokes.
    """

    def __init__(self, image: tuple[int, int], patch: int, classes: int, channels: int, width: int) -> None:
        super().__init__()
        rows, columns = check_image(image, patch)
        self.image, self.patch, self.classes, self.positions = image, patch, classes, rows * columns
        self.project = init_linear_(nn.Linear(width, channels * patch**2))
        groups = max(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, classes, 5, padding=2),
        )

    def forward(self, h: Tensor) -> Tensor:
        batch = h.shape[:-2]
        patches = self.project(h[..., -self.positions :, :]).reshape(-1, self.positions, self.project.out_features)
        pixels = F.fold(patches.transpose(1, 2), self.image, self.patch, stride=self.patch)
        logits = self.head(pixels).flatten(2).transpose(1, 2)  # [B, pixels, classes]
        return logits.reshape(*batch, -1, self.classes)
