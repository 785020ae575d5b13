"""What an exported file is checked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tune_sparsity.tuner.results.export import ExportFailed, _reader


def test_a_file_that_onnxruntime_cannot_read_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken").write_bytes(b"no graph")
    with pytest.raises(ExportFailed, match=r"^onnxruntime cannot read the file that torch has written: [^\n]+$"):
        _reader(SimpleNamespace(), "onnx", tmp_path / "broken")  # type: ignore[arg-type]
