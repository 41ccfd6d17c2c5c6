"""Facial expressions: action units, the emotion vocabulary, the expression grammar and its spaces."""
