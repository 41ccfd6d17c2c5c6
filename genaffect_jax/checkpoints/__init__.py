"""The run folder: checkpoints, configuration and the frozen components that a run keeps beside them."""
