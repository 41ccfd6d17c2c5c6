"""Rectified flow: noise schedule, training target, guidance and samplers. Nothing here knows a network."""
