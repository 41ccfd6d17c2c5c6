"""Networks: MM-DiT, attention, conditioning and autoencoder. Pure functions of arrays and parameters."""
