#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` makes files that only their owner can read, whatever the umask.
#
# One would expect the permissions of any new file, 0644 under the usual umask 022; safetensors 0.7.0 gave them. 0.8.0
# puts a private file in the place of any earlier one, so that weights have mode 0600 beside a config.json that all can
# read. An earlier file does not keep its permissions, and a symbolic link is replaced by a file. Weights that one
# account writes for another cannot be read there until someone changes the mode. The function `save`, whose bytes the
# caller writes, is not affected.
# Output seen (umask 022):
#   0.7.0: new file 0644, over a file with 0664: 0664, over a link: still a link
#   0.8.0: new file 0600, over a file with 0664: 0600, over a link: no link any more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
umask 022
for version in 0.7.0 0.8.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" numpy==2.4.6
  mkdir "$folder/$version"
  "$folder/venv/bin/python" - "$folder/$version" "$version" <<'PY'
import importlib.metadata
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

folder, version = pathlib.Path(sys.argv[1]), sys.argv[2]
assert importlib.metadata.version("safetensors") == version
new, old, link, target = (folder / name for name in ("new", "old", "link", "target"))
old.touch()
old.chmod(0o664)
target.touch()
link.symlink_to(target)
for path in (new, old, link):
    save_file({"x": np.ones(2, np.float32)}, path)
modes = [path.stat().st_mode & 0o777 for path in (new, old)]
linked = "still a link" if link.is_symlink() else "no link any more"
print(f"{version}: new file {modes[0]:04o}, over a file with 0664: {modes[1]:04o}, over a link: {linked}")
if version == "0.7.0":
    assert modes == [0o644, 0o664]
    assert link.is_symlink()
else:
    assert modes == [0o600, 0o600], "new files now have the permissions that the umask gives"
    assert not link.is_symlink(), "links are followed now"
PY
done
