"""What several tests of the sparsity methods need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tune_sparsity.sparsity.optim import fused


@pytest.fixture(scope="module", params=["compiled", "torch"])
def either_step(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test twice: with the compiled step, and with the operations of torch that replace it if there is no
    compiler."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(fused, "kernel", None)
        elif fused.kernel is None:
            pytest.skip("no compiled step: apt-get install gcc libc6-dev, then make compile")
        yield
