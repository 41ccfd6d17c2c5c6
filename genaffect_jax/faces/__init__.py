"""Facial expressions: action units, the emotion vocabulary and the expression grammar."""
