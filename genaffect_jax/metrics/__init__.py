"""Figures about generated pictures. They see encoders through the protocols of `faces.encoders` only."""
