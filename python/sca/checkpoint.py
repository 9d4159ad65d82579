"""Checkpoints: any tree of dicts, lists, plain values and tensors in one safetensors file with its own digest.

Nothing is unpickled. The tensors are the file's tensors; the tree around them is JSON in the file's metadata; a digest
over both detects damage that the format itself would not notice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from .files import read_whole, write_whole

FORMAT = "sca-checkpoint-1"
#: What taking up a tree of another make raises: whatever reads one turns these into a :class:`CheckpointError`.
MALFORMED = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A file is not a checkpoint of this program, or is damaged."""


def save(path: Path, tree: Any) -> None:
    """Write ``tree`` to ``path``, whole.

    Args:
        path: the file; its folder exists.
        tree: dicts (keys: int, or str without "/"), lists, tuples, str, int, float, bool, None and dense tensors. A
            tensor is named after its keys, joined by "/".

    Raises:
        TypeError: the tree holds something else.
        OSError: the file cannot be written; what was there before stays.
    """
    write_whole(path, to_bytes(tree))


def load(path: Path) -> Any:
    """Read the tree that :func:`save` wrote; tensors on the CPU.

    Raises:
        CheckpointError: the file is truncated, damaged, or of another format.
        OSError: there is no such file, or it is not readable.
    """
    return from_bytes(read_whole(path), path)


def to_bytes(tree: Any) -> bytes:
    """What :func:`save` writes."""
    tensors: dict[str, Tensor] = {}
    description = json.dumps(_describe(tree, "", tensors))
    return sealed(tensors, description, FORMAT)


def from_bytes(content: bytes, source: object) -> Any:
    """The tree of :func:`to_bytes`; errors name ``source``."""
    tensors, description = unsealed(content, source, FORMAT)
    try:
        return _rebuild(json.loads(description), tensors)
    except MALFORMED as error:
        raise CheckpointError(f"{source}: not the tree of a checkpoint ({told(error)})") from error


def sealed(tensors: Mapping[str, Tensor], description: str, form: str) -> bytes:
    """A safetensors file with these tensors (dense, contiguous, on the CPU, no two in the same memory), a text beside
    them, the name of its format, and a digest over tensors and text."""
    return serialise(dict(tensors), {"format": form, "tree": description, "digest": digest(tensors, description)})


def unsealed(content: bytes, source: object, form: str) -> tuple[dict[str, Tensor], str]:
    """Tensors and text of :func:`sealed`.

    Raises:
        CheckpointError: naming ``source``: it is truncated, damaged, or of another format.
    """
    try:
        tensors, metadata = deserialise(content), _metadata(content)
    except (SafetensorError, *MALFORMED) as error:  # a KeyError: a dtype that torch does not have
        raise CheckpointError(f"{source}: not a checkpoint, truncated or damaged ({told(error)})") from error
    if metadata.get("format") != form:
        raise CheckpointError(f"{source}: expected format {form}, got {metadata.get('format')!r:.80}")
    description = metadata.get("tree", "")
    if metadata.get("digest") != digest(tensors, description):
        raise CheckpointError(f"{source}: damaged (its content does not match its digest)")
    return tensors, description


def form_of(content: bytes) -> str | None:
    """What a file calls its format; None where it is no safetensors file, or calls it nothing."""
    try:
        form = _metadata(content).get("format")
    except MALFORMED:
        return None
    return form if isinstance(form, str) else None


def _metadata(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def told(error: BaseException) -> str:
    """An error of :data:`MALFORMED` in a part of a sentence: its kind where its text is not one."""
    text = " ".join(str(error).split())
    text = f"{text[:300]} ..." if len(text) > 300 else text
    return text if isinstance(error, ValueError | RuntimeError) and text else f"{type(error).__name__}: {text}"


def digest(tensors: Mapping[str, Tensor], description: str) -> str:
    """Hexadecimal digest of dense tensors on the CPU, by name, and of a text."""
    content = hashlib.blake2b(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


# A description is JSON. Plain values stand for themselves; everything else is a one-entry object whose key says what it
# is.


def _describe(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Turn ``node`` into its description and put its tensors, contiguous and on the CPU, into ``tensors``."""
    if node is None or isinstance(node, str | int | float):
        return node
    if isinstance(node, Tensor):
        # strides are part of an optimizer's state: a buffer must lie like its parameter
        channels_last = node.dim() == 4 and not node.is_contiguous()
        tensors[path] = node.detach().cpu().contiguous().clone()
        return {"channels_last" if channels_last else "tensor": path}
    if isinstance(node, list | tuple):
        items = [_describe(item, f"{path}/{position}", tensors) for position, item in enumerate(node)]
        return {"tuple" if isinstance(node, tuple) else "list": items}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str | int) or "/" in str(key):
                raise TypeError(
                    f"tree: expected keys that are int, or str without '/', got {key!r} in {path or 'the root'}"
                )
        return {
            "dict": [
                [key, _describe(value, f"{path}/{key}" if path else str(key), tensors)] for key, value in node.items()
            ]
        }
    raise TypeError(f"tree: expected plain values and tensors, got {type(node).__name__} in {path or 'the root'}")


def _rebuild(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "channels_last":
            return tensors[content].contiguous(memory_format=torch.channels_last)
        case "list":
            return [_rebuild(item, tensors) for item in content]
        case "tuple":
            return tuple(_rebuild(item, tensors) for item in content)
        case "dict":
            return {key: _rebuild(value, tensors) for key, value in content}
    raise ValueError(f"expected a list, a tuple, a dict or a tensor, got {kind!r}")
