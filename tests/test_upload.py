"""The files uploaded to a cluster, as read by `det experiment create` itself."""

import os
import shutil

from conftest import ROOT
from determined.common.context import read_v1_context


def test_a_users_folders_travel_whatever_they_are_called(tmp_path):
    shutil.copy(ROOT / ".detignore", tmp_path)
    kept = ["photos/docs/a.png", "photos/build/b.png", "photos/dev/c.png", "photos/tests/LICENSE",
            "photos/venv/d.png", "detsd/__init__.py", "demo_model/unet/config.json"]  # fmt: skip
    left = ["docs/app.md", "build/lib/x.py", "dev/LOG.md", "tests/conftest.py", "LICENSE",
            "demo_model/work/big.pt", "detsd.egg-info/PKG-INFO", ".git/config",
            "outputs/run/a.png", ".venv/bin/python", "venv/bin/python"]  # fmt: skip
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "photos", tmp_path / "linked", target_is_directory=True)
    found = {file.path for file in read_v1_context(tmp_path)}
    assert set(kept) <= found
    assert not set(left) & found
    # As docs/operations.md says: a linked folder arrives empty.
    assert [name for name in found if name.startswith("linked")] == ["linked"]


def test_all_that_is_left_behind_is_named_from_the_top():
    lines = (ROOT / ".detignore").read_text().splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert len(patterns) > 10
    assert all(pattern.startswith("/") for pattern in patterns)
