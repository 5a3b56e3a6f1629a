"""As in the tests of the operations."""

from tests.ops.conftest import fuse_small_maps_too as fuse_small_maps_too
