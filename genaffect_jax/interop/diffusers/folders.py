"""Component folders of the diffusers layout: `config.json` beside tensors, alone or inside a pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.interop.diffusers.tensor_files import WRITTEN_NAMES, read_json
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.exchange import is_part_of_exchange, undo_killed_exchange
from genaffect_jax.io.lock import locked

CONFIG_FILE = "config.json"
PIPELINE_FILE = "model_index.json"
_CLASS = "_class_name"


def component_folder(folder: Path, name: str) -> Path:
    """The component's own folder: `folder`, or `folder/name` if `folder` is a pipeline, whole or in part.

    Raises:
        WeightsError: there is no such folder, or it is neither; the message says what is there.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}")
    if not name or ((folder / CONFIG_FILE).exists() and not (folder / PIPELINE_FILE).is_file()):
        return folder
    if (folder / name).is_dir():
        return folder / name
    if (folder / PIPELINE_FILE).is_file():
        raise WeightsError(f"{folder / name}: no such folder; the pipeline has {_contents(folder)}")
    raise WeightsError(
        f"{folder}: has neither {CONFIG_FILE} of a {name} nor the {name}/ of a pipeline (has {_contents(folder)})"
    )


def read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """The entries of a component's `config.json`.

    Raises:
        WeightsError: the file is missing, is damaged or describes another class.
    """
    values = read_json(folder / CONFIG_FILE)
    if values.get(_CLASS) != class_name:
        raise WeightsError(f"{folder / CONFIG_FILE}: {_CLASS} is {values.get(_CLASS)!r}, must be {class_name!r}")
    return values


@contextmanager
def new_component(folder: Path, class_name: str, config: dict[str, Any]) -> Iterator[Path]:
    """A new folder with a `config.json` to fill; when the block ends without an error, it becomes `folder`.

    An earlier folder of the same class is replaced. After an error, it is as it was (`io.atomic.new_folder`).

    Raises:
        WeightsError: `folder` exists and holds other files than such a component.
    """
    folder = folder.resolve()  # behind a link, the folder itself is replaced
    if folder.is_dir():
        with locked(folder):
            undo_killed_exchange(folder)
    _refuse_foreign(folder, class_name)
    with new_folder(folder, replace=True) as new:
        (new / CONFIG_FILE).write_text(json.dumps({_CLASS: class_name, **config}, indent=2) + "\n", encoding="utf-8")
        yield new


def _contents(folder: Path) -> str:
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return listed(names, separator=", ", characters=300) or "nothing"


def _refuse_foreign(folder: Path, class_name: str) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise WeightsError(f"{folder}: is no folder; weights are not written over it")
    names = sorted(path.name for path in folder.iterdir() if not is_part_of_exchange(path.name))
    foreign = [name for name in names if name != CONFIG_FILE and not WRITTEN_NAMES.fullmatch(name)]
    if foreign:
        raise WeightsError(
            f"{folder}: holds other files ({listed(foreign, separator=', ')}); weights are not written over them"
        )
    if names:
        read_config(folder, class_name)
