"""The shipped experiment files as Determined 0.38.1 accepts them, checked without a cluster."""

import json
import random
import re

import pytest
import re2
from determined.common.util import yaml_safe_load
from tiny import ROOT

from detsd.config import (
    KINDS,
    check_experiment,
    load_config,
    parse_config,
)

NAMES = sorted(p.name for p in [*ROOT.glob("*_*.yaml"), ROOT / "evaluate.yaml"])

# Keys and types from Determined's reference of the experiment configuration, as far as used here.
# The master accepts others, too; the test requires that they are added on purpose.
SEARCHER = {
    "name": str, "metric": str, "smaller_is_better": bool, "source_trial_id": int,
    "source_checkpoint_uuid": str,
}  # fmt: skip
SEARCHERS = {
    "single": SEARCHER,
    "grid": SEARCHER | {"max_concurrent_trials": int},
    "random": SEARCHER | {"max_trials": int, "max_concurrent_trials": int},
    "adaptive_asha": SEARCHER | {
        "max_trials": int, "max_concurrent_trials": int, "time_metric": str, "max_time": int,
        "mode": str, "divisor": (int, float), "max_rungs": int, "bracket_rungs": list,
    },
}  # fmt: skip
EXPERIMENT = {
    "name": str,
    "description": str,
    "labels": list,
    "workspace": str,
    "project": str,
    "entrypoint": (str, list),
    "max_restarts": int,
    "hyperparameters": dict,
    "searcher": dict,
    "resources": {
        "slots_per_trial": int, "max_slots": int, "resource_pool": str, "priority": int,
        "weight": (int, float), "shm_size": (int, str), "is_single_node": bool, "devices": list,
    },
    "environment": {
        "image": (str, dict), "environment_variables": (list, dict), "force_pull_image": bool,
        "registry_auth": dict, "pod_spec": dict,
    },
    "checkpoint_storage": {
        "save_experiment_best": int, "save_trial_best": int, "save_trial_latest": int,
    },
    "bind_mounts": list,
    "log_policies": list,
    "reproducibility": {"experiment_seed": int},
    "profiling": {"enabled": bool},
}  # fmt: skip
RANGES = {
    "const": {"val": object},
    "categorical": {"vals": list},
    "int": {"minval": int, "maxval": int, "count": int},
    "double": {"minval": (int, float), "maxval": (int, float), "count": int},
    "log": {"minval": (int, float), "maxval": (int, float), "base": (int, float), "count": int},
}


def problems(given, wanted, path="") -> list[str]:
    """List the parts of `given` that the description `wanted` does not allow."""
    found = []
    for key, value in given.items():
        kind = wanted.get(key)
        where = f"{path}{key}"
        if kind is None:
            found.append(f"{where} is no key")
        elif isinstance(kind, dict):
            found += (
                problems(value, kind, f"{where}.") if isinstance(value, dict) else [f"{where} type"]
            )
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found.append(f"{where} is a {type(value).__name__}")
    return found


def range_problems(value, path="hyperparameters") -> list[str]:
    """List search ranges that Determined would refuse, or would not expand."""
    if isinstance(value, list):
        inside = any(isinstance(v, dict) for v in value)
        return [f"{path}: a range inside a list is not expanded"] if inside else []
    if not isinstance(value, dict):
        return []
    if "type" not in value:
        return [p for k, v in value.items() for p in range_problems(v, f"{path}.{k}")]
    rest = {k: v for k, v in value.items() if k != "type"}
    kinds = RANGES.get(value["type"])
    if kinds is None:
        return [f"{path}: no kind of range is called {value['type']}"]
    missing = kinds.keys() - rest.keys() - {"count"}
    found = problems(rest, kinds, f"{path}.") + [f"{path}.{k} is missing" for k in missing]
    if not found and "minval" in rest and rest["minval"] >= rest["maxval"]:
        found.append(f"{path}: minval must be less than maxval")
    return found


def experiment_problems(experiment) -> list[str]:
    found = problems(experiment, EXPERIMENT)
    searcher = experiment["searcher"]
    found += problems(searcher, SEARCHERS[searcher["name"]], "searcher.")
    needed = ["name", "entrypoint", "hyperparameters", "searcher"]
    found += [f"{key} is missing" for key in needed if key not in experiment]
    if searcher["name"] in ("random", "adaptive_asha") and "max_trials" not in searcher:
        found.append("searcher.max_trials is missing")
    for line in experiment.get("environment", {}).get("environment_variables", []):
        if not isinstance(line, str) or "=" not in line:
            found.append(f"environment variable {line!r} is not NAME=VALUE")
    for policy in experiment.get("log_policies", []):
        found += problems(policy, {"name": str, "pattern": str, "action": str}, "log_policies.")
        if set(policy) == {"name"}:  # removes a policy that the master would add
            continue
        found += [f"log_policies: {key} is missing" for key in {"name", "pattern"} - policy.keys()]
        try:
            re2.compile(policy.get("pattern", ""))
        except re2.error as error:  # the master would accept it but never match it
            found.append(f"log_policies: {policy['pattern']} is no pattern of RE2 ({error})")
        if policy.get("action") not in ("cancel_retries", "exclude_node"):
            found.append(f"log_policies has the action {policy.get('action')}")
    return found + range_problems(experiment["hyperparameters"])


def draw(value, rng: random.Random):
    """Draw hyperparameters as a trial of a search gets them."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "categorical":
        return rng.choice(value["vals"])
    if kind == "int":
        return rng.randint(value["minval"], value["maxval"] - 1)
    if kind == "double":
        return rng.uniform(value["minval"], value["maxval"])
    if kind == "log":
        return value["base"] ** rng.uniform(value["minval"], value["maxval"])
    return {k: draw(v, rng) for k, v in value.items()}


def through_the_master(value):
    """Pass a value through JSON, where whole floats become int."""
    if isinstance(value, dict):
        return {k: through_the_master(v) for k, v in value.items()}
    if isinstance(value, list):
        return [through_the_master(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files(name):
    text = (ROOT / name).read_text()
    experiment = yaml_safe_load(text)
    assert experiment_problems(experiment) == []
    job = re.match("[a-z]+", name)[0]
    kind = next(kind for kind, (_, _, command) in KINDS.items() if command == job)
    assert f"det e create {name} ." in text
    launcher = "python3 -m determined.launch.torch_distributed"
    if experiment["searcher"]["name"] == "single":  # off cluster, too
        load_config(ROOT / name, kind=kind)
    assert experiment["entrypoint"] == f"{launcher} python3 -m detsd {job}"
    # Mistakes and full GPUs end at the first try; the advice names a setting of this kind of job.
    removed, mistake, memory = experiment["log_policies"]
    assert removed == {"name": "CUDA OOM"}
    assert mistake["pattern"] == "^detsd: "
    knob = "training.train_batch_size" if job == "finetune" else "output.batch_size"
    assert f"lower {knob}" in memory["name"]
    # Every trial gets hyperparameters that the package accepts, unchanged by the master.
    rng = random.Random(0)
    for _ in range(20):
        drawn = draw(experiment["hyperparameters"], rng)
        there = through_the_master(drawn)
        check_experiment(experiment | {"hyperparameters": there}, name, kind)
        assert parse_config(there, name, kind) == parse_config(drawn, name, kind)


def test_searches_search():
    """They search the ranges in their descriptions; ASHA judges at validations."""
    tune, images = (
        yaml_safe_load((ROOT / f"{job}_search.yaml").read_text())
        for job in ("finetune", "generate")
    )
    assert (tune["searcher"]["name"], images["searcher"]["name"]) == ("adaptive_asha", "random")
    hp = tune["hyperparameters"]
    assert hp["training"]["learning_rate"]["type"] == "log"
    assert hp["concepts"]["num_vectors"]["type"] == "categorical"
    s = tune["searcher"]
    rungs = [s["max_time"] / s["divisor"] ** k for k in range(s["max_rungs"])]
    assert all(rung % hp["training"]["checkpoint_freq"] == 0 for rung in rungs), rungs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_restart": 3}, "max_restart is no key"),
        ({"max_restarts": "3"}, "max_restarts is a str"),
        ({"resources": {"slots": 2}}, "resources.slots is no key"),
        ({"searcher": {"name": "single", "max_time": 9}}, "searcher.max_time is no key"),
        ({"searcher": {"name": "random"}}, "searcher.max_trials is missing"),
        ({"log_policies": [{"name": "n", "pattern": "p", "actions": []}]}, "actions is no key"),
        ({"log_policies": [{"name": "n", "action": "cancel_retries"}]}, "pattern is missing"),
        (
            {"log_policies": [{"name": "n", "pattern": "(?!x)y", "action": "cancel_retries"}]},
            "no pattern of RE2",
        ),
        ({"hyperparameters": {"a": {"type": "ddim"}}}, "no kind of range is called ddim"),
        ({"hyperparameters": {"a": [{"type": "int"}]}}, "inside a list"),
        ({"hyperparameters": {"a": {"type": "log", "minval": -4, "maxval": -2}}}, "base is miss"),
    ],
)
def test_the_check_finds_mistakes(change, words):
    experiment = yaml_safe_load((ROOT / "finetune_demo.yaml").read_text())
    assert any(words in p for p in experiment_problems(experiment | change))
