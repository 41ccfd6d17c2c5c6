"""Kernels and fused operations with written-out gradients. They know arrays and meshes, no networks."""
