"""Quantizing with the numpy that PYNQ needs gives the files that it gives with a newer one."""

from test_reproducible import (  # noqa: F401  run here, too
    test_a_model_file_is_the_same_everywhere,
    test_the_shipped_model_is_the_file_of_the_tests,
)
