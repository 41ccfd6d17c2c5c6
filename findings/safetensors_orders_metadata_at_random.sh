#!/usr/bin/env bash
# safetensors 0.8.0 writes the text entries of a header in another order each time: equal content, unequal checksums.
#
# A good guess is that a format made for sharing weights is written reproducibly: the arrays are sorted by type and name,
# and a dict keeps its order in Python and in JSON. But the entries of `metadata` pass through a hash map with a random
# seed for each call. With one entry, or none, files are equal to the byte. So a SHA-256 names a file, not its weights:
# a second export of an unchanged model has another one, and stores that keep equal files once (Git LFS, caches by
# content) keep all of them.
#
# What helps: sort `__metadata__` in the header afterwards. The arrays' offsets count from the header's end, so they stay.
# Output seen:
#   different files of 20 equal saves: without texts 1, with one 1, with six 20
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'safetensors==0.8.0' 'numpy==2.3.5'
"$work/venv/bin/python" - <<'P'
import hashlib

import numpy as np
from safetensors.numpy import load, save


def digests(texts, tensors=1):
    arrays = {f"t{i}": np.arange(3.0) + i for i in range(tensors)}
    files = [save(arrays, metadata=texts) for _ in range(20)]
    assert all(load(file).keys() == arrays.keys() for file in files)
    return len({hashlib.sha256(file).digest() for file in files})


none, one, many = digests(None, tensors=6), digests({"a": "1"}), digests({str(i): "x" for i in range(6)})
print(f"different files of 20 equal saves: without texts {none}, with one {one}, with six {many}")
assert none == one == 1 < many, "changed"
P
