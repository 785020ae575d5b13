"""Test which share of the weights of torchvision's networks is prunable."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.coverage import coverage, networks
from tests import ROOT

A_DOZEN = (
    *("mobilenet_v3_small", "resnet50", "vit_b_16", "swin_t", "convnext_tiny", "maxvit_t", "regnet_y_400mf"),
    *("deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "r3d_18", "mvit_v2_s", "swin3d_t"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in A_DOZEN else pytest.mark.long) for name in networks()]
)
def test_a_network_has_the_documented_share_of_prunable_weights(name: str) -> None:
    found = coverage(name)
    assert found.share >= 0.985
    assert found.share >= 0.99 or all("relative_position_bias_table" in what for what in found.dense)
    assert found.row() in Path(ROOT / "docs" / "layers.md").read_text()
