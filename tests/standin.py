"""A stand-in for Determined's master: answers the harness and keeps what it was told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from conftest import command
from tiny import ROOT


class Master:
    """Serves on a free port while used as a context manager; `told` is a list of (path, body)."""

    def __init__(self, folder: Path):
        self.folder, self.told = folder, []
        self.preempt = threading.Event()
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self):
                url = urlparse(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, reply = master.reply(url.path, parse_qs(url.query), body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> Master:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.preempt.set()  # ends the long polls
        self.server.shutdown()
        self.server.server_close()

    def reply(self, path: str, query: dict, body) -> tuple[int, dict]:
        if path.endswith("/signals/preemption"):
            until = time.monotonic() + float(query["timeout_seconds"][0])
            while not self.preempt.is_set() and time.monotonic() < until:
                time.sleep(0.02)
            return 200, {"preempt": self.preempt.is_set()}
        self.told.append((path, body))
        if path == "/api/v1/runs/start":
            return 200, {"storageId": 1}
        known = r"/api/v1/(checkpoints|trials/\d+/(metrics|progress)|allocations/.*/ack_preemption)"
        found = re.fullmatch(known, path)
        return (200, {}) if found else (404, {"error": {"message": f"no such call: {path}"}})

    def metrics(self, group: str) -> dict[int, dict]:
        """What was reported, by step; the later report of a step counts."""
        bodies = [b for p, b in self.told if p.endswith("/metrics") and b["group"] == group]
        return {
            b["metrics"]["stepsCompleted"]: b["metrics"]["metrics"]["avgMetrics"] for b in bodies
        }

    def checkpoints(self) -> dict[int, str]:
        """uuid of the last checkpoint reported of each step."""
        bodies = [b for p, b in self.told if p == "/api/v1/checkpoints"]
        return {b["metadata"]["steps_completed"]: b["uuid"] for b in bodies}

    def store(self, uuid: str) -> Path:
        return self.folder / "storage" / uuid

    def run(
        self, hyperparameters: dict, latest: str | None = None, trial: int = 7
    ) -> subprocess.Popen:
        """Start `python -m detsd finetune` as this cluster's trial."""
        info = self.folder / "info"
        info.mkdir(exist_ok=True)
        (self.folder / "storage").mkdir(exist_ok=True)
        config = {
            "checkpoint_storage": {"type": "directory", "container_path": str(self.store(""))},
            "hyperparameters": hyperparameters,
            "searcher": {"name": "single", "metric": "val_loss"},
        }
        url = f"http://127.0.0.1:{self.server.server_port}"
        files = {
            "cluster": {
                "master_url": url, "cluster_id": "c", "agent_id": "a", "slot_ids": [0],
                "task_id": "t", "allocation_id": "a.1", "session_token": "s",
                "task_type": "TRIAL", "latest_checkpoint": latest,
            },
            "trial": {
                "trial_id": trial, "experiment_id": 1, "trial_seed": 0, "trial_run_id": 1,
                "hparams": hyperparameters, "config": config, "steps_completed": 0,
                "debug": False, "inter_node_network_interface": None,
            },
            "rendezvous": {
                "container_addrs": ["127.0.0.1"], "container_rank": 0,
                "container_slot_counts": [1],
            },
            "resources": {"gpu_uuids": []},
        }  # fmt: skip
        for name, content in files.items():
            (info / f"{name}.json").write_text(json.dumps(content))
        env = os.environ | {
            "DET_MASTER": url, "DET_USER": "u", "DET_SESSION_TOKEN": "s",
            "DET_ALLOCATION_ID": "a.1", "DET_RETRY_CONFIG": '{"total": 0}',
            "TRIAL_INFO_DIR": str(info), "PYTHONPATH": str(ROOT / "tests" / "in_a_trial"),
        }  # fmt: skip
        return subprocess.Popen(
            command("finetune"), cwd=ROOT, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
