"""Settings of every test: float64, strict promotion of dtypes and ranks, and the flag that makes batched products right."""

import os
from pathlib import Path

import jax
import pytest

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # as in a run; a GPU would round to 10 bits
# Compiled programs are kept between runs; the tests count lowerings, which the cache does not hide.
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAXSHARP_TEST_CACHE", str(Path(__file__).parent / ".jax_cache")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    """Runs a test in both precisions; yields the name."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Forgets compiled programs after each module: their memory maps add up, and a process may hold only so many."""
    yield
    jax.clear_caches()
