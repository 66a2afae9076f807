"""The spaces of APQ that configs name: that of the paper, and smaller ones (APQ, §3.1 and §3.2)."""

import dataclasses
from collections.abc import Mapping

from apq_jax.architecture_space import ArchitectureSpace, Stage


def _stages(*rows: tuple[int, int, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(*row) for row in rows)


SPACES: Mapping[str, ArchitectureSpace] = {
    # APQ, §3.1 and §3.2: 21 blocks, images of 224 pixels.
    "paper": ArchitectureSpace(
        image=224,
        classes=1000,
        stages=_stages((24, 2, 2, 4), (40, 2, 2, 4), (80, 2, 2, 4), (96, 1, 2, 4), (192, 2, 2, 4), (320, 1, 1, 1)),
        stem=32,
        stem_stride=2,
        first=16,
        head=1280,
    ),
    # For CIFAR-10 at 32 pixels, or averaged to 16.
    "cifar": ArchitectureSpace(
        image=32,
        classes=10,
        stages=_stages((16, 1, 2, 3), (24, 2, 2, 3), (40, 2, 2, 3)),
        stem=16,
        stem_stride=1,
        first=8,
        head=160,
    ),
    # For scikit-learn's digits at 8 pixels.
    "digits": ArchitectureSpace(
        image=8,
        classes=10,
        image_channels=1,
        stages=_stages((8, 1, 1, 2), (16, 2, 1, 2)),
        stem=8,
        stem_stride=1,
        first=8,
        head=32,
        kernels=(3, 5),
        bits=(2, 4, 8),
    ),
}


def find(name: str, image: int = 0) -> ArchitectureSpace:
    """The space called `name`, for images of `image` pixels if that is not 0.

    Raises:
      ValueError: no space has that name.
    """
    if name not in SPACES:
        raise ValueError(f"space {name!r}: expected one of {', '.join(SPACES)}")
    return dataclasses.replace(SPACES[name], image=image) if image else SPACES[name]
