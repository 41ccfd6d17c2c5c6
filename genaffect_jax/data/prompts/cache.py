"""Cache of prompt embeddings on disk: every prompt is encoded once by the same text encoders."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from genaffect_jax.errors import DataError
from genaffect_jax.io.array_file import read_arrays, write_arrays
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.output import one_line

# Part of every key: increment it if the same files and text give other embeddings than before.
_VERSION = 1
_DIGESTS = "files.json"

Embeddings = tuple[Float[np.ndarray, "P T C"], Float[np.ndarray, "P D"]]
Encode = Callable[[Sequence[str]], Embeddings]


class PromptCache:
    """A folder with one file per prompt, named by a digest of everything that decides its embeddings.

    Args:
        folder: created with the first entry; several processes may use it at once.
        encoder: digest of the encoders' and tokenizers' files (`digest_files`).
        max_sequence_length: T5 tokens.
        dtype: type of the encoders and of the stored embeddings.
    """

    def __init__(self, folder: Path, encoder: str, max_sequence_length: int, dtype: str) -> None:
        self._folder = folder
        self._made_with = [_VERSION, encoder, max_sequence_length, dtype]

    def path(self, prompt: str) -> Path:
        """The file of a prompt; it need not exist."""
        return (
            self._folder / f"{hashlib.sha256(json.dumps([*self._made_with, prompt]).encode()).hexdigest()}.safetensors"
        )

    def get(self, prompt: str) -> tuple[Float[np.ndarray, "T C"], Float[np.ndarray, " D"]] | None:
        """Tokens and pooled embedding of a prompt, or None if they must be computed.

        A damaged entry counts as missing; a warning names its file.
        """
        path = self.path(prompt)
        if not path.exists():
            return None
        try:
            arrays, entries = read_arrays(path)
            if entries.get("prompt") != prompt or arrays.keys() != {"tokens", "pooled"}:
                raise DataError(f"{path}: not the entry of {prompt!r}")
        except DataError as e:
            warnings.warn(f"prompt cache: {one_line(str(e))}; it is computed again", stacklevel=2)
            return None
        return arrays["tokens"], arrays["pooled"]

    def put(self, prompt: str, tokens: Float[np.ndarray, "T C"], pooled: Float[np.ndarray, " D"]) -> None:
        """Writes an entry, atomically."""
        write_arrays(self.path(prompt), {"tokens": tokens, "pooled": pooled}, {"prompt": prompt})


def encode_cached(
    prompts: Sequence[str],
    cache: PromptCache,
    encode: Callable[[], Encode],
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda count: None,
) -> Embeddings:
    """Embeddings of all prompts; only missing ones are computed.

    Args:
        prompts: at least one.
        cache: holds the embeddings.
        encode: loads the text encoders and returns their function; called only if an entry is missing.
        batch_size: prompts per call of that function.
        progress: called with the number of newly finished prompts, cached ones first.

    Returns:
        Tokens [P, T, C] and pooled embeddings [P, D].
    """
    found = {prompt: entry for prompt in dict.fromkeys(prompts) if (entry := cache.get(prompt)) is not None}
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
    progress(len(found))
    if missing:
        compute = encode()
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for prompt, tokens, pooled in zip(batch, *compute(batch), strict=True):
                cache.put(prompt, tokens, pooled)
                found[prompt] = (tokens, pooled)
            progress(len(batch))
    return np.stack([found[p][0] for p in prompts]), np.stack([found[p][1] for p in prompts])


def digest_files(files: Mapping[str, Path], memory: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 over names and contents of files; hexadecimal.

    Digests of files are cached in `memory/files.json` by absolute path, size and modification time.

    Args:
        files: name (part of the digest) to path (not part of it, so a moved folder keeps its digest).
        memory: folder of the cache; created if missing.
        progress: called with 1 after each file.
    """
    path = memory / _DIGESTS
    try:
        known = {name: [str(d) for d in entry] for name, entry in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}  # no cache, or not readable: every file is read
    digests: dict[str, str] = {}
    changed = False
    for name, file in sorted(files.items()):
        status = file.stat()
        stamp = [str(status.st_size), str(status.st_mtime_ns)]
        key = str(file.resolve())
        if known.get(key, [])[:2] != stamp or len(known[key]) != 3:
            with file.open("rb") as content:
                known[key] = [*stamp, hashlib.file_digest(content, "sha256").hexdigest()]
            changed = True
        digests[name] = known[key][2]
        progress(1)
    if changed:
        write_atomically(path, json.dumps(known, indent=1))
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
