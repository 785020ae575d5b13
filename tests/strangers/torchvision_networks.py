"""Networks of torchvision, on small images."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import VisionTransformer, get_model

from tests.strangers.networks import Stranger


def vision_transformer() -> nn.Module:
    """Return a small vit_b_16: two blocks, narrower layers and five classes."""
    return VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )


def convolutional(name: str) -> Stranger:
    """Return a network of torchvision with ten classes. All its parameters of more than one dimension are prunable."""
    make = partial(get_model, name, weights=None, num_classes=10)
    return Stranger(make, (2, 3, 32, 32), sum(param.numel() for param in make().parameters() if param.dim() > 1))


TORCHVISION = {
    **{name: convolutional(name) for name in ("mobilenet_v3_small", "resnet18", "squeezenet1_1")},
    "vit_b_16 of two blocks": Stranger(
        vision_transformer, (2, 3, 32, 32), 3 * 32 * 256 + 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 5
    ),
}
