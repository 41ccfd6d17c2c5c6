"""What sets that no model sampled say of how they were made."""

SETTINGS = {
    "model": "model, step 1",
    "seed": 0,
    "identity": "seed:1",
    "config": {"conditioning": {"expression_space": "units"}},
    "versions": {},
}
