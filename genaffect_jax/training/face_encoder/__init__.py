"""Training of the face encoders."""
