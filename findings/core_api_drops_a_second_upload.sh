#!/usr/bin/env bash
# Core API uploads no TensorBoard files within a second of the last upload, and logs nothing.
#
# Versions: determined 0.38.1; its manager for shared storage, created as core.init creates it for
#   TensorboardMode.MANUAL, in which Context.train.upload_tensorboard_files() calls sync().
# Behaviour: a call within a second of the previous one returns at once. Its upload is not made up
#   for: in this mode nothing is uploaded when the context ends. The files written last are not
#   uploaded unless there is another call later.
# Why it matters here: a short run writes its last metrics and images just before it ends.
# Observed on 2026-11-29; the output is at the end.
source "$(dirname "$0")/common.sh"

observe determined==0.38.1 requests==2.31.0 urllib3==2.8.0 idna==3.20 certifi==2026.10.18 \
    charset-normalizer==3.5.2 ruamel.yaml==0.19.1 psutil==7.2.2 filelock==4.2.11 \
    appdirs==1.4.4 <<'PROGRAM'
import time
from pathlib import Path

from determined.tensorboard import shared

written, stored = Path("written"), Path("stored")
written.mkdir()
options = {"async_upload": True, "sync_on_close": False}
with shared.SharedFSTensorboardManager(str(stored), written, Path("run"), **options) as manager:
    for name, pause in (("first", 0), ("second", 0), ("third", 1.5)):
        time.sleep(pause)
        (written / f"events.{name}").write_text(name)
        manager.sync()
        if name == "second":
            time.sleep(0.5)  # the thread that uploads is done by then
            print("after two uploads at once:", *sorted(p.name for p in stored.rglob("events.*")))
    (written / "events.last").write_text("last")
    manager.sync()
print("at the end:", *sorted(p.name for p in stored.rglob("events.*")))
PROGRAM

expect <<'LINES'
after two uploads at once: events.first
at the end: events.first events.second events.third
LINES
