import pytest
import submitit  # noqa: F401 - see below

# submitit sets up logging when it is imported, which closes every handler there is. absl, which dm_control brings, has
# one on pytest's own capture file, and spares that only as long as it is sys.stderr: not within a CLI runner. So
# submitit comes first.


@pytest.fixture(autouse=True)
def _seeded():
    """The same random inputs on every day."""
    import torch  # here, as the process that only hands files to the workers has no use for it

    torch.manual_seed(0)
