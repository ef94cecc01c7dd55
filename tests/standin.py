"""A stand-in for Determined's master, for tests: answers the harness as the master would.

It keeps all reports across restarts of a trial, refuses requests that the master would refuse (and
records this), and determines the checkpoint from which a restarted trial continues.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

from determined import _info
from determined.common.util import yaml_safe_load
from determined.experimental import client
from forked import Forked, free_port
from tiny import ROOT

from detsd.__main__ import main

INFO_FILES = (_info.ClusterInfo, _info.TrialInfo, _info.RendezvousInfo, _info.ResourcesInfo)
TIME = "2024-01-01T00:00:00Z"
LAUNCHER = "python3 -m determined.launch.torch_distributed"


class Refused(Exception):
    """A request that the master answers with an error."""


class Unknown(Exception):
    """A request that the master answers with 404."""


class Dropped(Exception):
    """A connection that breaks before the master has received the request."""


def number(name: str, value: object) -> float:
    """Return `value` if it is a finite number; a searcher fails on NaN, which JSON lets through."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"{name} is {value!r}, not a finite number")
    return value


class Master:
    """A master on a free port, within a `with` block; at its end, it ends the processes it started.

    Attributes:
        told: (path, body) of every accepted request, in order.
        refused: the reasons for refusals; empty after a clean run.
        acknowledged: allocations that acknowledged their preemption.
        preempt: set while the trials are asked to stop; `preempt_told` once the newest knows it.
        judged: trials that the searcher has ended, which sends them no signal.
        states: the final states of trials, by their number; the others run.
        asked: how often each trial asked for its own state.
        state: the experiment's state.
        cut: returns True for the next request (path, body) whose response breaks off half-way.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.told: list[tuple[str, dict]] = []
        self.refused: list[str] = []
        self.acknowledged: set[str] = set()
        self.judged: set[int] = set()
        self.states: dict[int, str] = {}
        self.cut: Callable[[str, dict], bool] | None = None
        self.asked: collections.Counter[int] = collections.Counter()
        self.state = "COMPLETED"
        self.preempt, self.preempt_told = threading.Event(), threading.Event()
        self._runs: dict[int, int] = {}  # how often each trial was started
        self._rows: dict[tuple, dict] = {}  # (trial, run, group, step) -> metrics
        self._checkpoints: dict[str, dict] = {}  # uuid -> the report, in order
        self._deleted: dict[str, dict] = {}  # those deleted by garbage collection
        self._shown: dict[str, dict] = {}  # uuid -> metadata that were changed later
        self._trials: dict[int, dict] = {}  # trial -> the experiment's configuration
        self.models: dict[str, list[dict]] = {}  # the registry: name -> its versions
        self._hooks: list[tuple[Callable, Callable]] = []
        self._processes: list[subprocess.Popen] = []
        self._infos: list[Path] = []  # of every run, in order
        self._connections: set[socket.socket] = set()
        self._closing = False
        self._lock = threading.RLock()
        # Its path is short, since it holds sockets; it is deleted even if a process was killed.
        self._scratch = tempfile.TemporaryDirectory(prefix="det-")
        self._serve(0)

    # ---- serving -----------------------------------------------------------------------------

    def _serve(self, port: int) -> None:
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # a response is sent at once: clients can hang up only between two

            def log_message(self, *args):
                pass

            def handle(self):
                master._connections.add(self.connection)
                # A process that is killed, or exits during a poll, closes the connection.
                with contextlib.suppress(OSError):
                    super().handle()
                master._connections.discard(self.connection)

            def finish(self):
                with contextlib.suppress(OSError):  # the rest of the response
                    super().finish()

            def answer(self):
                url = urlparse(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(length)
                if len(data) < length:  # killed while sending
                    raise ConnectionError
                body = json.loads(data) if length else {}
                try:
                    status, reply = 200, master._reply(url.path, parse_qs(url.query), body)
                except Refused as error:
                    master.refused.append(f"{url.path}: {error}")
                    status, reply = 400, {"error": {"code": 3, "error": str(error)}}
                except Unknown:
                    status, reply = 404, {"message": "not found"}
                except Dropped:
                    self.close_connection = True
                    return
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if master.cut and master.cut(url.path, body):
                    master.cut = None
                    data, self.close_connection = data[:-1], True
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            if process.poll() is None:
                self.kill(process)
                process.communicate()
        for info in self._infos:  # the harness leaves these where TMPDIR does not reach
            Path(f"/tmp/pid_server-{info.name}").unlink(missing_ok=True)
            for left in Path("/tmp").glob(f"tensorboard-{info.name}-*"):
                shutil.rmtree(left)
        self._scratch.cleanup()
        self._closing = True  # ends the long polls
        self.server.shutdown()
        self.server.server_close()

    def refuse_connections(self, seconds: float) -> None:
        """Be unreachable: close connections, and refuse new ones."""
        port = self.server.server_port
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        threading.Timer(seconds, self._serve, [port]).start()

    def when(self, told: Callable[[str, dict], bool], act: Callable[[], None]) -> None:
        """Call `act()` once, before the first request for which `told(path, body)` is processed.

        `act` may raise Dropped, so that the request counts as not received.
        """
        self._hooks.append((told, act))

    # ---- what the master does with a request -------------------------------------------------

    def _reply(self, path: str, query: dict, body: dict) -> dict:
        if path.endswith("/signals/preemption"):
            until = time.monotonic() + float(query["timeout_seconds"][0])
            while not self.preempt.is_set() and not self._closing and time.monotonic() < until:
                time.sleep(0.02)
            # A killed trial's poll may still wait here.
            if self.preempt.is_set() and self._infos[-1].name in path:
                self.preempt_told.set()
            return {"preempt": self.preempt.is_set()}
        for hook in list(self._hooks):
            if hook[0](path, body):
                self._hooks.remove(hook)
                hook[1]()
        with self._lock:
            reply = self._hear(path, body, query)
            self.told.append((path, body))
        return reply

    def _hear(self, path: str, body: dict, query: dict) -> dict:
        if path == "/api/v1/runs/start":
            return {"storageId": 1}
        if path == "/api/v1/master":
            return {"version": "0.38.1"}
        if found := re.fullmatch(r"/api/v1/allocations/(.*)/signals/ack_preemption", path):
            self.acknowledged.add(found[1])
        elif found := re.fullmatch(r"/api/v1/trials/(\d+)/metrics", path):
            self._hear_metrics(int(found[1]), body)
        elif found := re.fullmatch(r"/api/v1/trials/(\d+)", path):
            self.asked[int(found[1])] += 1
            return {"trial": self._described_trial(int(found[1]))}
        elif re.fullmatch(r"/api/v1/trials/\d+/progress", path):
            if not 0 <= number("progress", body["progress"]) <= 1:
                raise Refused(f"progress is {body['progress']}")
        elif re.fullmatch(r"/api/v1/trials/\d+/runner/metadata", path):
            if not isinstance(body["state"], str):
                raise Refused(f"a trial's state is {body['state']!r}, not a text")
        elif found := re.fullmatch(r"/api/v1/experiments/1(/\w+)?", path):
            return self._described_experiment(found[1])
        elif path.startswith("/api/v1/experiments/"):
            raise Unknown
        elif path == "/api/v1/trials/metrics/trial_metrics":
            return self._validations(int(query["trialIds"][0]))
        elif found := re.fullmatch(r"/api/v1/checkpoints/(.+)/metadata", path):
            self._shown[found[1]] = body["checkpoint"]["metadata"]  # the files stay as they are
        elif found := re.fullmatch(r"/api/v1/checkpoints/(.+)", path):
            return {"checkpoint": self._described(found[1])}
        elif path == "/api/v1/checkpoints":
            if "steps_completed" not in body["metadata"]:
                raise Refused("a checkpoint without steps_completed")
            self._checkpoints[body["uuid"]] = body
        elif path.startswith("/api/v1/models"):
            newest = query.get("orderBy") == ["ORDER_BY_DESC"]
            return self._hear_registry(*map(unquote, path.split("/")[4:]), body=body, newest=newest)
        else:
            raise Refused("no such call")
        return {}

    def _hear_registry(
        self, name: str = "", versions: str = "", number: str = "", *, body: dict, newest: bool
    ) -> dict:
        """`models`, `models/NAME`, `models/NAME/versions` and `models/NAME/versions/NUMBER`."""
        if not name:
            if body["name"] in self.models:
                raise Refused(f"there is a model {body['name']}")
            self.models[name := body["name"]] = []
        if name not in self.models:
            raise Unknown
        found, time = self.models[name], TIME
        model = {
            "name": name, "id": 1, "archived": False, "creationTime": time, "metadata": {},
            "lastUpdatedTime": time, "numVersions": len(found), "userId": 1, "username": "u",
            "workspaceId": 1,
        }  # fmt: skip
        if "checkpointUuid" in body:
            found.append({
                "checkpoint": self._described(body["checkpointUuid"]), "creationTime": time,
                "id": len(found) + 1, "version": len(found) + 1, "lastUpdatedTime": time,
                "model": model,
            })  # fmt: skip
        elif number:
            if not 1 <= int(number) <= len(found):
                raise Unknown
            found[int(number) - 1].update(body)
        for version in found:
            version["checkpoint"] = self._described(version["checkpoint"]["uuid"])
        this = found[int(number or 0) - 1] if found else None
        return {
            "model": model, "modelVersions": found[::-1] if newest else found, "modelVersion": this,
            "pagination": {"endIndex": len(found), "total": len(found)},
        }  # fmt: skip

    def _hear_metrics(self, trial: int, body: dict) -> None:
        told, group = body["metrics"], body["group"]
        if told["trialRunId"] != self._runs[trial]:
            raise Refused(f"run {told['trialRunId']} reports while run {self._runs[trial]} runs")
        if "." in group:
            raise Refused(f"the group name {group} has a dot")
        metrics = told["metrics"]["avgMetrics"]
        for name, value in metrics.items():
            number(f"{group} metric {name}", value)
        row = self._rows.setdefault((trial, told["trialRunId"], group, told["stepsCompleted"]), {})
        for name in metrics.keys() & row.keys():
            if row[name] != metrics[name]:
                raise Refused(f"{name} is told twice for step {told['stepsCompleted']}")
        row.update(metrics)

    def _described(self, uuid: str) -> dict:
        known = self._checkpoints | self._deleted
        if uuid not in known:
            raise Unknown
        report, state = known[uuid], "COMPLETED" if uuid in self._checkpoints else "DELETED"
        storage = {"type": "directory", "container_path": str(self.store(""))}
        storage |= self._trials.get(7, {}).get("checkpoint_storage", {})
        return {
            "uuid": uuid, "state": f"STATE_{state}",
            "metadata": self._shown.get(uuid, report["metadata"]),
            "resources": report["resources"], "training": {
                "experimentConfig": {"checkpoint_storage": storage}, "experimentId": 1,
                "trialId": int(report["taskId"].removeprefix("task-")), "hparams": {},
            },
        }  # fmt: skip

    def _described_trial(self, trial: int) -> dict:
        state = "STOPPING_COMPLETED" if trial in self.judged else "RUNNING"
        state = self.states.get(trial, state)
        return {
            "id": trial, "experimentId": 1, "state": f"STATE_{state}",
            "hparams": self._trials.get(trial, {}).get("hyperparameters", {}),
            "restarts": 0, "startTime": TIME, "totalBatchesProcessed": 0,
        }  # fmt: skip

    def _described_experiment(self, part: str | None) -> dict:
        """Return the experiment of all trials, or a list of its `/trials` or `/checkpoints`."""
        config = next(iter(self._trials.values()))
        if part == "/trials":
            found = [self._described_trial(trial) for trial in sorted(self._trials)]
        elif part == "/checkpoints":  # those that are left, the newest first
            found = [self._described(uuid) for uuid in self._checkpoints]
            found.sort(key=lambda c: c["metadata"]["steps_completed"], reverse=True)
        else:
            return {"experiment": {
                "archived": False, "config": config, "id": 1, "jobId": "j", "name": "test",
                "numTrials": len(self._trials), "originalConfig": "", "projectId": 1,
                "projectOwnerId": 1, "searcherType": config["searcher"]["name"],
                "startTime": TIME, "state": f"STATE_{self.state}", "username": "u",
            }}  # fmt: skip
        return {part[1:]: found, "pagination": {"endIndex": len(found), "total": len(found)}}

    def _validations(self, trial: int) -> dict:
        """Return a trial's validation metrics; JSON has no NaN and no infinity."""
        rows = self.metrics("validation", trial)
        return {"result": {"metrics": [
            {
                "archived": False, "endTime": TIME, "group": "validation", "id": step,
                "metrics": {"validation_metrics": row}, "totalBatches": step, "trialId": trial,
                "trialRunId": 1,
            }
            for step, row in rows.items()
        ]}}  # fmt: skip

    def collect_garbage(self, latest: int) -> int:
        """Delete checkpoints, as the master does after an experiment and `det e continue`.

        Each trial keeps its `latest` newest checkpoints. Returns the number deleted.
        """
        gone = 0
        for task in {c["taskId"] for c in self._checkpoints.values()}:
            own = [u for u, c in self._checkpoints.items() if c["taskId"] == task]
            own.sort(key=lambda u: self._checkpoints[u]["metadata"]["steps_completed"])
            for old in own[: max(0, len(own) - latest)]:
                self._deleted[old] = self._checkpoints.pop(old)
                shutil.rmtree(self.store(old))
                gone += 1
        return gone

    # ---- what it knows afterwards ------------------------------------------------------------

    def metrics(self, group: str, trial: int = 7) -> dict[int, dict]:
        """Return valid metrics by step: a restart archives older rows from its first step on."""
        rows: dict[int, dict] = {}
        for run in range(1, self._runs.get(trial, 0) + 1):
            own = {k[3]: v for k, v in self._rows.items() if k[:3] == (trial, run, group)}
            rows = {s: m for s, m in rows.items() if s < min(own, default=math.inf)} | own
        return rows

    def checkpoints(self, trial: int = 7) -> dict[int, str]:
        """Return the uuid of each step's last checkpoint."""
        found = {
            c["metadata"]["steps_completed"]: u
            for u, c in self._checkpoints.items()
            if c["taskId"] == f"task-{trial}"
        }
        return dict(sorted(found.items()))

    def progress(self) -> list[float]:
        return [body["progress"] for path, body in self.told if path.endswith("/progress")]

    def store(self, uuid: str) -> Path:
        return self.folder / "storage" / uuid

    def stored(self, trial: int = 7) -> dict[int, Path]:
        """Return each checkpoint's folder by step, after checking that all reported files exist."""
        folders = {}
        for step, uuid_ in self.checkpoints(trial).items():
            folder, report = self.store(uuid_), self._checkpoints[uuid_]
            for name, size in report["resources"].items():
                path = folder / name
                assert path.is_dir() if name.endswith("/") else path.stat().st_size == int(size)
            kept = json.loads((folder / "metadata.json").read_text())
            assert kept == report["metadata"]
            folders[step] = folder
        return folders

    # ---- running a trial ---------------------------------------------------------------------

    def _prepare(
        self, experiment: dict, trial: int = 7, slots: int = 1, source: str | None = None
    ) -> tuple[Path, dict[str, str]]:
        """Return the folder of info files for a trial's next run, and its environment."""
        self._runs[trial] = self._runs.get(trial, 0) + 1
        allocation = f"{trial}.{uuid.uuid4()}"
        info = self.folder / "info" / allocation
        info.mkdir(parents=True)
        self._infos.append(info)
        self.store("").mkdir(exist_ok=True)
        storage = {"type": "directory", "container_path": str(self.store(""))}
        experiment = {"searcher": {"name": "single", "metric": "val_loss"}} | experiment
        self._trials[trial] = experiment
        latest = list(self.checkpoints(trial).values())[-1:] or [source]
        url = f"http://127.0.0.1:{self.server.server_port}"
        files = {
            "cluster": {
                "master_url": url, "cluster_id": "c", "agent_id": "a",
                "slot_ids": list(range(slots)), "task_id": f"task-{trial}",
                "allocation_id": allocation, "session_token": "s",
                "task_type": "TRIAL", "latest_checkpoint": latest[0],
            },
            "trial": {
                "trial_id": trial, "experiment_id": 1, "trial_seed": 0,
                "trial_run_id": self._runs[trial], "hparams": experiment["hyperparameters"],
                "config": experiment | {
                    "checkpoint_storage": experiment.get("checkpoint_storage", {}) | storage,
                    "hyperparameters": written_out(experiment["hyperparameters"]),
                },
                "steps_completed": 0,
                "debug": False, "inter_node_network_interface": None,
            },
            "rendezvous": {
                "container_addrs": ["127.0.0.1"], "container_rank": 0,
                "container_slot_counts": [slots],
            },
            "resources": {"gpu_uuids": []},
        }  # fmt: skip
        for name, content in files.items():
            (info / f"{name}.json").write_text(json.dumps(content))
        return info, {
            "DET_MASTER": url, "DET_USER": "u", "DET_USER_TOKEN": "s", "DET_SESSION_TOKEN": "s",
            "DET_ALLOCATION_ID": allocation, "TRIAL_INFO_DIR": str(info),
            # Tests run side by side on one machine; a container has these ports to itself.
            "INTER_TRAIN_PROCESS_COMM_PORT_1": str(free_port()),
            "INTER_TRAIN_PROCESS_COMM_PORT_2": str(free_port()),
        }  # fmt: skip

    def launch(
        self, experiment: dict, *, command: str = "finetune", trial: int = 7, slots: int = 1,
        source: str | None = None,
    ) -> subprocess.Popen:  # fmt: skip
        """Start `python3 -m detsd COMMAND` as this cluster's trial, restarted if it is known.

        As in a container, the startup hook runs, then Determined's launcher with one rank per slot.
        `source` is the checkpoint that a new trial starts from.
        """
        info, env = self._prepare(experiment, trial, slots, source)
        env |= {
            "DET_TASK_TYPE": "TRIAL",
            "DET_SLOT_IDS": json.dumps(list(range(slots))),
            "PIP_NO_INDEX": "1",  # packages that the hook would install are missing here, too
            "TMPDIR": self._scratch.name,
            "PYTHONPATH": str(ROOT / "tests" / "in_a_trial"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "C10D_PORT": str(free_port()),
        }
        env = os.environ | env
        if slots > 1:
            env.pop("OMP_NUM_THREADS")  # as in a container; the hook sets it
        task = f"set -e; . ./startup-hook.sh; exec {LAUNCHER} python3 -m detsd {command}"
        process = subprocess.Popen(
            ["bash", "-c", task], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        process.info = info
        self._processes.append(process)
        return process

    def fork(self, experiment: dict, *, command: str = "finetune", slots: int = 1, **options):
        """Do the same as `launch`, without the launcher and the libraries' load time."""
        info, env = self._prepare(experiment, slots=slots, **options)

        def trial() -> int:
            tempfile.tempdir = self._scratch.name
            with believing(env):
                return main([command])

        return Forked(info, trial, slots)

    def run(self, experiment: dict, expect: int = 0, **options) -> str:
        """Run a trial's next run to its end, in this process; return its output.

        `expect` is the expected exit code.
        """
        code, said = self._run(experiment, **options)
        assert code == expect, said
        return said

    def _run(self, experiment: dict, *, command: str = "finetune", **options) -> tuple[int, str]:
        _, env = self._prepare(experiment, **options)
        text = io.StringIO()
        with believing(env), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = main([command])
        return code, text.getvalue()

    def live(self, experiment: dict, **options) -> list[str]:
        """Run a trial with its experiment's restarts; return each run's output."""
        said = []
        for _ in range(1 + experiment["max_restarts"]):
            code, text = self._run(experiment, **options)
            said.append(text)
            if code == 0 or ends_restarts(experiment, text):
                break
        return said

    def end(self, process: subprocess.Popen) -> str:
        """Wait until a process ends, and end its container; return its output."""
        process.wait(timeout=300)  # the machine may be busy
        self.kill(process)  # ranks that the launcher left running
        return process.communicate()[0]

    def kill(self, process: subprocess.Popen) -> None:
        """Send SIGKILL, as when the machine fails: no process of the task can clean up."""
        for member in [process.pid, *self.ranks(process).values()]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(member), signal.SIGKILL)

    def ranks(self, process: subprocess.Popen) -> dict[int, int]:
        """Return the process id of each rank that has started."""
        return {int(p.suffix[1:]): int(p.read_text()) for p in process.info.glob("rank.*")}


@contextlib.contextmanager
def believing(env: dict[str, str]):
    """Make this process look like a trial's, as sitecustomize.py does for another process."""
    readers = [kind._from_file.__func__ for kind in INFO_FILES]
    before = dict(os.environ), [read.__defaults__ for read in readers]
    os.environ.update(env)
    for read in readers:
        read.__defaults__ = (os.path.join(env["TRIAL_INFO_DIR"], Path(read.__defaults__[0]).name),)
    client._determined = None  # otherwise it would use an earlier test's master
    _info._info = "unloaded"  # the harness's own value; it reads the info once
    try:
        yield
    finally:
        _info._info = "unloaded"
        os.environ.clear()
        os.environ.update(before[0])
        for read, defaults in zip(readers, before[1], strict=True):
            read.__defaults__ = defaults


# The policies that a master of 0.38.1 appends to an experiment's own.
MASTERS_POLICIES = (
    {"name": "CUDA OOM", "pattern": ".*CUDA out of memory.*"},
    {"name": "ECC Error", "pattern": ".*uncorrectable ECC error encountered.*"},
)


def log_policies(experiment: dict) -> list[dict]:
    """Return an experiment's policies as the master completes them; one without pattern removes."""
    own = experiment["log_policies"]
    names = {policy["name"] for policy in own}
    return [p for p in (*own, *MASTERS_POLICIES) if p in own or p["name"] not in names]


def matched(experiment: dict, said: str) -> list[dict]:
    """Return the policies that a trial's output matches; the last one's name is its label.

    The master checks every line as the task printed it, without the launcher's prefix.
    """
    lines = [re.sub(r"^\[rank=\d+\] ", "", line) for line in said.splitlines()]
    return [
        policy
        for policy in log_policies(experiment)
        if "pattern" in policy and any(re.search(policy["pattern"], line) for line in lines)
    ]


def ends_restarts(experiment: dict, said: str) -> bool:
    """Return whether a trial with this output is not restarted."""
    return any(p.get("action") == "cancel_retries" for p in matched(experiment, said))


def written_out(value: object) -> object:
    """Return hyperparameters as the master writes them into an experiment's configuration."""
    if isinstance(value, dict):
        return {key: written_out(v) for key, v in value.items()}
    return {"type": "const", "val": value}


def experiment_of(path: Path) -> dict:
    """Return the experiment file at `path` as the master passes it to a trial: through JSON."""
    return json.loads(json.dumps(yaml_safe_load(path.read_text())))
