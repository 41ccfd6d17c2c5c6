"""A model as ONNX graphs: what they take and give, and a sampler that needs nothing else."""
