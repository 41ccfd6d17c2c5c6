"""The type of text settings that may name a file, beside `package:NAME` and other words."""

from __future__ import annotations

from typing import Annotated

NAMES_FILES = "may name a file"
FileName = Annotated[str, NAMES_FILES]
