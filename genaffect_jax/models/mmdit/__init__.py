"""The multimodal diffusion transformer of the SD3 family with decoupled condition branches."""
