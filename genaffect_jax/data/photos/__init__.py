"""Photos of people: face analysis, alignment, reading."""
