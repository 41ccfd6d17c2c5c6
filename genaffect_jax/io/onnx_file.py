"""ONNX files as they may stand for a network: one file that holds everything the network depends on.

A tensor of an ONNX file may lie in another file (`TensorProto.data_location` EXTERNAL, the layout that PyTorch's
exporter writes unless told otherwise). A copy and a checksum of the one file would miss it, so such files are refused
wherever a network is read for this package. https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genaffect_jax.errors import WeightsError, install_command, listed

_COMPILED = "EPContext"  # onnxruntime's node for what an accelerator's compiler has made, inside or beside the file


def parse_model(content: bytes, name: str) -> Any:
    """The `onnx.ModelProto` of a file's content, for which no other file has been read.

    Args:
        content: the bytes of the file.
        name: its name, for the advice in a message; messages do not begin with it.

    Raises:
        WeightsError: the package `onnx` is not installed, the content is no ONNX model, or the model depends on another
            file; tensors anywhere in it count (of graphs, graphs in nodes, functions, sparse ones).
    """
    try:
        import onnx
    except ImportError as e:
        raise WeightsError(f"an ONNX file needs the package onnx ({install_command('photo')})") from e
    try:
        model = onnx.load_model_from_string(content)
    except Exception as e:  # protobuf has error classes of its own
        raise WeightsError(f"damaged, or no ONNX file ({type(e).__name__}: {e})") from e
    others = sorted(set(_other_files(model)))
    if others:
        raise WeightsError(
            f"its weights lie in other files ({listed([repr(name) for name in others], 3)}), which a copy or a "
            f"checksum of it would miss; onnx.save(onnx.load({name!r}), 'one.onnx') in Python makes one file of "
            "them, and so does PyTorch's exporter with external_data=False"
        )
    return model


def _other_files(model: Any) -> Iterator[str]:
    """The files that a model depends on, as it names them; found in every message of the file, wherever it stands."""
    from onnx import TensorProto

    rest = [model]
    while rest:
        message = rest.pop()
        if isinstance(message, TensorProto):  # its numbers are not looked at
            if message.data_location == TensorProto.EXTERNAL:
                yield next((entry.value for entry in message.external_data if entry.key == "location"), "")
            continue
        if getattr(message, "op_type", "") == _COMPILED:
            given = {attribute.name: attribute for attribute in message.attribute}
            if "embed_mode" in given and given["embed_mode"].i == 0:
                yield given["ep_cache_context"].s.decode(errors="replace") if "ep_cache_context" in given else ""
        for _, value in message.ListFields():
            parts = [value] if isinstance(value, str | bytes | int | float) or _is_message(value) else value
            rest += [part for part in parts if _is_message(part)]


def _is_message(value: Any) -> bool:
    """Whether a field's value is a message of protobuf, not a number, a text or a list."""
    return hasattr(value, "ListFields")
