"""Names of the denoiser's parameters that other modules rely on.

The flat names of `models.genaffect.GenAffect` (see `models.functional`) are

    identity_projector.*, expression_projector.*    what turns conditions into tokens
    mmdit.segments.<s>.layers.<part>.*              the blocks of the transformer; the leading axis of every array
                                                    counts the blocks of segment s
    mmdit.<part>.*                                  the rest of the transformer: patch_embed, out and others

Patterns are those of `fnmatch`: `*` matches any text, dots included.
"""

from __future__ import annotations

import re

MMDIT = "mmdit."
"""Prefix of the transformer's parameters within the denoiser."""
STACKED = re.compile(r"segments\.(\d+)\.layers\.(.+)")
"""A parameter of the blocks within the transformer: number of the segment, name within the block."""
PROJECTOR_STACKED = re.compile(r"(\w+_projector)\.stack\.layers\.(.+)")
"""A parameter of the layers of a condition projector: name of the projector, name within the layer."""
BRANCHES = ("identity", "expression")
"""Parts of a block that are its condition branches (`models.mmdit.projections.ConditionBranch`)."""
ADAPTERS = (
    "identity_projector.*",
    "expression_projector.*",
    *(f"{MMDIT}segments.*.{branch}.*" for branch in BRANCHES),
)
"""Patterns of all parameters that Gen-AFFECT adds to the base model."""
LORA_TARGETS = (f"{MMDIT}segments.*qkv.*.kernel", f"{MMDIT}segments.*out.kernel")
"""Patterns of the kernels around attention, which low-rank additions change by default (`LoraConfig.targets`)."""
QUERY_KERNEL = "image_qkv.query.kernel"
"""A parameter that every block has, and no other part."""
ATTENTIONS = (("image_qkv", "text_qkv"), ("image_attention.qkv",))
"""Parts of a block whose queries and keys meet in one attention: the joint one, and that of the image tokens alone."""


def branch_key_kernels(query_kernel: str) -> tuple[str, ...]:
    """The kernels of a block that start as copies of its `QUERY_KERNEL`, given the whole name of the latter."""
    block = query_kernel.removesuffix(QUERY_KERNEL)
    return tuple(f"{block}{branch}.key.kernel" for branch in BRANCHES)
