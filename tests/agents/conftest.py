import pytest
import torch


@pytest.fixture
def double():
    """Work in float64, so that two ways to compute the same thing agree closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
