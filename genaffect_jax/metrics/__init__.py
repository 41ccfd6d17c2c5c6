"""Figures about generated pictures. They see encoders through the protocols of `data.face_encoders` only."""
