"""Figures about generated images. They see encoders through the protocols of `data.face_encoders` only."""
