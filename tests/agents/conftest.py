import pytest
import torch


@pytest.fixture
def double():
    """Work in float64, so that two ways to compute the same thing agree closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _seeded():
    """The same random inputs on every day."""
    torch.manual_seed(0)
