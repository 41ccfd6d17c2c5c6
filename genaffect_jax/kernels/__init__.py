"""Kernels and fused operations with written-out gradients. They take arrays and meshes and know no networks."""
