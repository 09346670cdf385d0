import pytest
import submitit  # noqa: F401 - see below
import torch

# submitit sets up logging when it is imported, which closes every handler there is. absl, which dm_control brings, has
# one on pytest's own capture file, and spares that only as long as it is sys.stderr: not within a CLI runner. So
# submitit comes first.


@pytest.fixture(autouse=True)
def _seeded():
    """The same random inputs on every day."""
    torch.manual_seed(0)
