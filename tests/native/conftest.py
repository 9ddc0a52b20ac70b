from collections.abc import Iterator

import pytest
import torch

from factory.native import build, kernels


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With the kernels in C in use."""
    if build.compiler() is None:
        pytest.skip("there is no C compiler")
    before = torch.get_num_threads()
    kernels.use(True)
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield request.param
    torch.set_num_threads(before)
