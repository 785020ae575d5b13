"""Tests the errors of an export."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.tuner.results.export import ExportFailed, reader_of, write_as
from tune_sparsity.tuner.results.export_formats import save_onnx


def test_an_onnx_file_that_onnxruntime_cannot_read_gives_a_one_line_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken").write_bytes(b"no graph")
    with pytest.raises(ExportFailed, match=r"^onnxruntime cannot read the file that torch has written: [^\n]+$"):
        reader_of(SimpleNamespace(), "onnx", tmp_path / "broken")  # type: ignore[arg-type]


def test_a_network_that_a_format_cannot_store_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"^the network cannot be written as torch: [A-Z]\w+Error: [^\n]+$"):
        write_as(SimpleNamespace(tensors={"weight": lambda: 0}), "torch", tmp_path / "file")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        write_as(SimpleNamespace(packed=b""), "packed", tmp_path / "no" / "file")  # type: ignore[arg-type]


def test_an_operator_that_onnx_lacks_is_named_in_a_one_line_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match=r"^torch cannot export this network to ONNX: [^\n\x1b]*linalg_matrix_exp"):
        save_onnx(network, called, torch.ones(2, 3), tmp_path / "onnx")
