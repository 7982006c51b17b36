"""Networks between images and sequences of patches: the convolutional stem of Appendix B.1, and a decoder."""

from __future__ import annotations

import torch
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
        planes: 1, or the number of values of a pixel in :meth:`features_of`, which takes the values as planes.
    """

    def __init__(
        self, image: tuple[int, int], patch: int, classes: int, channels: int, width: int, planes: int = 1
    ) -> None:
        super().__init__()
        check_image(image, patch)
        self.image, self.patch, self.classes, self.planes = image, patch, classes, planes
        groups = max(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.stem = nn.Sequential(
            nn.Conv2d(planes, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
        )
        self.project = init_linear_(nn.Linear(channels * patch**2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels[..., None].to(self.project.weight.dtype) * (2 / max(1, self.classes - 1)) - 1
        return self.embed(self.features_of(x))

    def features_of(self, planes: Tensor) -> Tensor:
        """Apply the convolutions: ``[..., rows * columns, planes] -> [..., channels, rows, columns]``."""
        x = planes.transpose(-1, -2).reshape(-1, self.planes, *self.image)
        return self.stem(x).view(*planes.shape[:-2], -1, *self.image)

    def embed(self, features: Tensor) -> Tensor:
        """Embed each patch of features: ``[..., channels, rows, columns] -> [..., L, D]``."""
        patches = F.unfold(features.reshape(-1, *features.shape[-3:]), self.patch, stride=self.patch).transpose(1, 2)
        return self.project(patches).view(*features.shape[:-3], patches.shape[1], -1)  # of [B, L, channels * patch^2]


class PatchDecoder(nn.Module):
    """Compute logits of each pixel by two convolutions. ``[..., L, D] -> [..., rows * columns, classes]``.

    It takes the last positions of h, as :class:`~pyro_gram.networks.embeddings.TokenDecoder` does. Convolutions let
    neighbouring patches agree on shared strokes. The decoder may also read features of each pixel.

    Args:
        image, patch, classes, channels, width: as for :class:`PatchEncoder`.
        features: the number of features of a pixel; 0 for none.
    """

    def __init__(
        self, image: tuple[int, int], patch: int, classes: int, channels: int, width: int, features: int = 0
    ) -> None:
        super().__init__()
        rows, columns = check_image(image, patch)
        self.image, self.patch, self.classes, self.positions = image, patch, classes, rows * columns
        self.project = init_linear_(nn.Linear(width, channels * patch**2))
        groups = max(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.head = nn.Sequential(
            nn.Conv2d(channels + features, channels, 5, padding=2),
            nn.SiLU(),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, classes, 5, padding=2),
        )

    def forward(self, h: Tensor, features: Tensor | None = None) -> Tensor:
        """Return logits of the pixels. ``features`` are ``[..., features, rows, columns]``."""
        batch = h.shape[:-2]
        patches = self.project(h[..., -self.positions :, :]).reshape(-1, self.positions, self.project.out_features)
        pixels = F.fold(patches.transpose(1, 2), self.image, self.patch, stride=self.patch)
        if features is not None:
            features = features.expand(*batch, *features.shape[-3:]).reshape(-1, *features.shape[-3:])
            pixels = torch.cat((pixels, features), 1)
        logits = self.head(pixels).flatten(2).transpose(1, 2)  # [B, pixels, classes]
        return logits.reshape(*batch, -1, self.classes)
