"""Configuration: types, all problems reported at once, every shipped file in the real parser."""

import dataclasses
import json
import math

import pytest
import yaml
from tiny import ROOT

from detsd import config as cfg
from detsd.__main__ import main
from detsd.config import (
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    differences,
    load_config,
    parse_config,
    read_experiment,
    search,
)
from detsd.config.yaml_versions import cluster_value, disagreements
from detsd.utils.errors import UserError

MINIMAL = {
    "model": {"pretrained_model_name_or_path": "demo_model"},
    "concepts": {
        "concept_strs": ["blob-thing"],
        "initializer_strs": ["ball"],
        "img_dirs": ["det_logos"],
    },
}


def with_values(**sections):
    merged = {name: dict(MINIMAL.get(name, {})) for name in {*MINIMAL, *sections}}
    for name, values in sections.items():
        merged[name].update(values)
    return merged


def test_const_has_the_fields_people_know():
    experiment = cfg.read_experiment(ROOT / "finetune_const.yaml")
    assert experiment["resources"]["slots_per_trial"] == 2
    assert experiment["environment"]["environment_variables"] == [
        "HF_AUTH_TOKEN=YOUR_HF_AUTH_TOKEN_HERE"
    ]
    config = load_config(ROOT / "finetune_const.yaml")
    assert config.model.pretrained_model_name_or_path == "CompVis/stable-diffusion-v1-4"


def test_hyperparameters_survive_the_trip_through_json():
    given = with_values(training={"learning_rate": 8.0, "max_grad_norm": None})
    there = json.loads(json.dumps(given).replace("8.0", "8"))  # as the master returns it
    assert parse_config(there, "x") == parse_config(given, "x")
    assert isinstance(parse_config(there, "x").training.learning_rate, float)


def test_exponents_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"hyperparameters": MINIMAL}))
    config = load_config(path, ["training.learning_rate=5e-4", "training.num_sgd_steps=7"])
    assert config.training.learning_rate == 5e-4
    assert config.training.num_sgd_steps == 7


def test_a_scalar_stands_for_a_list_of_one():
    config = parse_config(with_values(concepts={"initializer_strs": "red ball"}), "x")
    assert config.concepts.initializer_strs == ["red ball"]


def test_all_problems_are_reported_together():
    with pytest.raises(UserError) as caught:
        parse_config(
            with_values(
                training={"lerning_rate": 1, "num_sgd_steps": -3, "optimizer_name": "adamx"},
                concepts={"img_size": "big"},
                modle={},
            ),
            "my.yaml",
        )
    text = str(caught.value)
    assert text.startswith("my.yaml has 5 problems")
    for part in (
        "training.lerning_rate is not a known key; did you mean 'learning_rate'?",
        "training.num_sgd_steps is -3 but must be at least 1",
        "training.optimizer_name is 'adamx' but must be one of adam, adamw, sgd",
        "concepts.img_size is 'big' but must be a whole number or null",
        "modle is not a known key; did you mean 'model'?",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"concepts": {"img_dirs": ["a", "b"]}}, "concepts.img_dirs has 2 entries for 1"),
        (
            {"concepts": {k: [v] * 2 for k, v in zip(
                ("concept_strs", "initializer_strs", "img_dirs"), "xyz", strict=True)}},
            "names 'x' twice",
        ),
        ({"concepts": {"concept_strs": []}}, "concept_strs is empty"),
        ({"concepts": {"num_vectors": [0]}}, "num_vectors is 0"),
        ({"training": {"learning_rate": 0}}, "must be greater than 0"),
        ({"training": {"scale_lr": "yes"}}, "must be true or false"),
        ({"training": {"adam_beta1": 1.0}}, "adam_beta1 must be less than 1"),
        ({"training": {"lr_warmup_steps": 9000}}, "lr_warmup_steps is larger"),
        ({"training": {"lr_warmup_steps": 2.5}}, "lr_warmup_steps must be a whole number"),
        ({"training": {"max_sample_grad_norm": 0}}, "sample_grad_norm is 0.* greater than 0"),
        ({"training": {"learning_rate": float("nan")}}, "must be a number"),
        ({"model": None}, "model must be a mapping of keys to values, not null"),
        ({"training": {"learning_rate": None}}, "learning_rate is null but must be a number"),
        ({"training": {"num_sgd_steps": True}}, "num_sgd_steps is true but must be a whole"),
        ({"inference": {"guidance_interval": 1}}, "is .1.0. but must be .start, stop."),
        ({"inference": {"guidance_interval": "x"}}, "'x' but must be null, or a list, each item a"),
        ({"inference": {"seeds": "1,2"}}, "'1,2' but must be a whole number, or a list of such in"),
        ({"inference": {"seeds": [1, "a"]}}, "'a'. but must be a list, each item a whole number$"),
        ({"training": {"lr_scheduler": "Cosine"}}, "linear, cosine; did you mean 'cosine'.$"),
        ({"inference": {"scheduler_name": "Euler a"}}, "; did you mean 'euler-ancestral'.$"),
        ({"inference": {"scheduler_name": "dpmsolver++_karras"}}, "mean 'dpmsolver..-karras'.$"),
        ({"inference": {"scheduler_name": "x"}}, "unipc, heun, lcm$"),
        ({"inference": {"seeds": [2**32]}}, "inference.seeds is 4294967296 but must be at most"),
        ({"training": {"num_sgd_steps": 10**400}}, "1000.* a whole number of at most 18 digits"),
        ({"training": {"learning_rate": 10**400}}, "0000 but must be a number"),
        ({"concepts": {"num_vectors": 10**17}}, "num_vectors is 10*0 but must be at most 1000"),
        ({"concepts": {"concept_strs": "x" * 300}}, "a word of 300 characters, which is too long"),
        ({"training": {"register_model": "my/blob"}}, "'my/blob', which is not a valid model name"),
    ],
)  # fmt: skip
def test_what_is_refused(sections, words):
    given = {**with_values(), **{k: v for k, v in sections.items() if v is None}}
    given = given if None in sections.values() else with_values(**sections)
    with pytest.raises(UserError, match=words):
        parse_config(given, "x")


def test_what_follows_a_hash_on_the_command_line_is_not_lost(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"hyperparameters": MINIMAL}))
    key = "inference.inference_prompts="
    with pytest.raises(UserError, match="YAML reads what follows # as a comment"):
        load_config(path, [f"{key}a photo of #1 logo"])
    with pytest.raises(UserError, match="comment"):
        load_config(path, ["concepts.transparency_color=#ffffff"])
    for text in ("a C# logo", '"a photo of #1 logo"', "[a C#, b]"):
        said = load_config(path, [key + text]).inference.inference_prompts
        assert said == yaml.safe_load(f"[{text}]" if text[0] != "[" else text)


def test_missing_required_key():
    with pytest.raises(UserError, match="concepts.img_dirs is missing"):
        parse_config(
            {**MINIMAL, "concepts": {"concept_strs": ["a"], "initializer_strs": ["b"]}}, "x"
        )


def test_search_ranges_need_a_searcher(tmp_path):
    path = tmp_path / "e.yaml"
    lr = {"type": "log", "minval": -4, "maxval": -2, "base": 10}
    path.write_text(
        yaml.safe_dump({"hyperparameters": with_values(training={"learning_rate": lr})})
    )
    with pytest.raises(UserError, match=r"holds search ranges \(training.learning_rate\); submit"):
        load_config(path)
    assert load_config(path, ["training.learning_rate=0.01"]).training.learning_rate == 0.01
    with pytest.raises(UserError, match=r"\(concepts.num_vectors, training.learning_rate, train"):
        load_config(ROOT / "finetune_search.yaml")


ASHA = {
    "name": "adaptive_asha", "metric": "val_loss", "time_metric": "sgd_steps", "max_time": 3000,
    "max_trials": 8,
}  # fmt: skip
MEASURED = with_values(measure={"num_samples": {"type": "const", "val": 4}})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"resources": {"slots_per_trial": 0}}, "slots_per_trial: 0.* number of at least 1"),
        ({"resources": {"slots_per_trial": "2"}}, "slots_per_trial: '2', .* a whole number of"),
        (
            {"searcher": {"metric": "val_loss", "smaller_is_better": False}},
            "metric: val_loss, where smaller values are better, but smaller_is_better: false; rem",
        ),
        ({"searcher": {"metric": "val_gap"}}, "metric: val_gap, where larger values are better; "),
        ({"searcher": {"name": "single"}}, "no searcher.metric; add metric: val_loss"),
        ({"searcher": {"name": "single", "metric": "loss"}}, "metric: loss, which is not reported"),
        ({"searcher": ASHA | {"time_metric": None}}, "add time_metric: sgd_steps"),
        ({"searcher": ASHA | {"time_metric": "batches"}}, "time_metric: batches, which is not"),
        ({"searcher": ASHA | {"max_time": None}}, "no searcher.max_time"),
        ({"searcher": ASHA | {"max_time": "270"}}, "max_time: '270'; give a whole number"),
        ({"searcher": "single"}, "searcher: single, but searcher is a section"),
        (
            {"searcher": {"metric": "val_loss"}, "hyperparameters": MEASURED},
            "by score .training.best_metric., but the cluster selects it by searcher.metric",
        ),
        (
            {"searcher": {"metric": "score"}, "hyperparameters": MEASURED},
            "searcher.metric: score, where larger values are better; add smaller_is_better",
        ),
        (
            {"searcher": {"metric": "lineup"}, "hyperparameters": MEASURED},
            "metric: lineup, which is not reported.* sgd_steps, score.*, or set measure.lineup$",
        ),
        (
            {"searcher": {"metric": "score"}},
            "metric: score, which is not reported at every .*, or set measure.num_samples$",
        ),
        ({"resources": 2}, "resources: 2, but resources is a section"),
        (
            {"searcher": ASHA, "hyperparameters": with_values(training={"num_sgd_steps": 500})},
            "max_time: 3000, but its trials end at training.num_sgd_steps: 500",
        ),
        (  # as the master writes it
            {
                "searcher": ASHA,
                "hyperparameters": with_values(
                    training={"num_sgd_steps": {"type": "const", "val": 500}}
                ),
            },
            "max_time: 3000, but its trials end at training.num_sgd_steps: 500",
        ),
    ],
)
def test_experiments_that_a_cluster_could_not_serve(tmp_path, sections, words):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"hyperparameters": MINIMAL} | sections))
    with pytest.raises(UserError, match=words) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    path.write_text(yaml.safe_dump({"hyperparameters": MINIMAL, "searcher": ASHA}))
    load_config(path)


def test_every_field_is_documented():
    def fields(kind):
        for f in dataclasses.fields(kind):
            yield kind.__name__, f

    for section in (cfg.ModelConfig, cfg.ConceptsConfig, cfg.TrainingConfig, cfg.InferenceConfig):
        for owner, f in fields(section):
            assert len(f.metadata["help"]) > 8, f"{owner}.{f.name}"


def test_differences_name_the_keys():
    a = dataclasses.asdict(parse_config(MINIMAL, "x"))
    b = dataclasses.asdict(parse_config(with_values(training={"learning_rate": 0.5}), "x"))
    assert differences(a, b) == ["training.learning_rate was 0.0005, is 0.5"]
    assert differences(a, a) == []
    b["concepts"] |= {"num_vectors": [None, 3], "horizontal_flip": True, "concept_strs": ["x" * 99]}
    vectors, flip, word = sorted(differences(b, a), reverse=True)[1:]
    assert vectors == "concepts.num_vectors was [null, 3], is [null]"
    assert flip == "concepts.horizontal_flip was true, is false"
    assert word.startswith(f"concepts.concept_strs was ['{'x' * 99}'], is [")
    assert isinstance(parse_config(MINIMAL, "x"), FinetuneConfig)


def test_a_concept_can_be_given_another_word():
    minimal = {"model": {"pretrained_model_name_or_path": "m"}, "grid": {"prompts": "x"}}
    given = [{"a.pt": "cat-toy"}, "b.pt", "c.pt=dog-toy"]
    config = parse_config({**minimal, "concepts": {"files": given}}, "x", GenerateConfig)
    assert config.concepts.files == ["a.pt=cat-toy", "b.pt", "c.pt=dog-toy"]
    config = parse_config({**minimal, "concepts": {"files": given[0]}}, "x", GenerateConfig)
    assert config.concepts.files == ["a.pt=cat-toy"]
    for wrong in ({"a.pt": 3}, {"a.pt": "x", "b.pt": "y"}, {}):
        with pytest.raises(UserError, match=r"each item a string, or \{string: word\}"):
            parse_config({**minimal, "concepts": {"files": [wrong]}}, "x", GenerateConfig)


def test_an_emoji_as_json_writes_it_is_one_character(tmp_path):
    """Half an escape gives a sentence, not a traceback."""
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"hyperparameters": MINIMAL}))
    config = load_config(path, ['concepts.concept_strs=["\\ud83d\\udc31"]'])
    assert config.concepts.concept_strs == ["\U0001f431"]
    with pytest.raises(UserError, match="without half an escaped emoji"):
        load_config(path, ['concepts.concept_strs=["\\ud83d"]'])
    text = json.dumps({"hyperparameters": with_values(concepts={"concept_strs": ["\U0001f431"]})})
    assert "\\ud83d" in text
    path.write_text(text)
    assert load_config(path).concepts.concept_strs == ["\U0001f431"]


def test_one_of_several_concepts_is_renamed_in_a_mapping(tmp_path):
    (tmp_path / "two.pt").touch()
    files = [{"two.pt": {"a": "b"}}, {"two.pt": "c"}, "two.pt=a=d"]
    given = {"model": MINIMAL["model"], "grid": {"prompts": "x"}, "concepts": {"files": files}}
    found = parse_config(given, "e", GenerateConfig, tmp_path).concepts.files
    assert found == [f"{tmp_path}/two.pt={words}" for words in ("a=b", "c", "a=d")]


def test_rungs_that_too_few_trials_take_away_are_told_beforehand(tmp_path, caplog, capsys):
    """The file's own command and every reader warn of them, counting like Determined."""
    text = (ROOT / "finetune_search.yaml").read_text()
    assert main(["search", str(ROOT / "finetune_search.yaml")]) == 0
    assert capsys.readouterr().out == (
        "18 trials of at most 270 sgd_steps; the best one in 3 by val_loss continues after 30 "
        "and 90\n"
    )
    assert caplog.text == ""
    for divisor in ("null", "2.5"):  # null is Determined's default, 4
        path = tmp_path / f"{divisor}.yaml"
        few = text.replace("max_trials: 18", "max_trials: 2")
        path.write_text(few.replace("divisor: 3", f"divisor: {divisor}"))
        assert main(["search", str(path)]) == 0
        assert "searcher.max_rungs: 3 becomes 1 with max_trials: 2" in caplog.text
        caplog.clear()
    for trials, rungs in ((9, [30, 90, 270]), (8, [90, 270]), (6, [90, 270]), (2, [270])):
        path = tmp_path / "few.yaml"
        path.write_text(text.replace("max_trials: 18", f"max_trials: {trials}"))
        caplog.clear()
        assert main(["search", str(path)]) == 0
        assert search.rungs(read_experiment(path)["searcher"]) == rungs
        assert ("set max_trials to 9 or more" in caplog.text) == (len(rungs) < 3)
    assert (
        "searcher.max_rungs: 3 becomes 1 with max_trials: 2 (Determined uses int(log(max_trials) "
        "/ log(divisor)) + 1 at most), so no trial is judged before sgd_steps 270;"
    ) in caplog.text
    assert capsys.readouterr().out.endswith(
        "2 trials of 270 sgd_steps; none is compared before its end\n"
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  max_trials: 18\n", "", "searcher.max_trials: null; give a whole number of at least 1"),
        ("max_trials: 18", "max_trials: '18'", "searcher.max_trials: '18'; give a whole number"),
        ("max_trials: 18", "max_trials: 0", "searcher.max_trials: 0; give a whole number of at l"),
        ("max_rungs: 3", "max_rungs: '3'", "searcher.max_rungs: '3'; give a whole number of at le"),
        ("divisor: 3", "divisor: 1", "searcher.divisor: 1; give a number above 1, such as 4"),
        ("divisor: 3", "divisor: '3'", "searcher.divisor: '3'; give a number above 1, such as 4"),
        ("max_time: 270", "max_time: 2", "searcher.max_time: 2, whose first rung is at 0; raise"),
        ("adaptive_asha", "random", "searcher.name: random, but only adaptive_asha compares tria"),
    ],
)
def test_searches_that_cannot_be_are_a_sentence(tmp_path, capsys, old, new, sentence):
    text = (ROOT / "finetune_search.yaml").read_text()
    path = tmp_path / "search.yaml"
    assert text.count(f"\n  {old.strip()}") == 1 or old == "adaptive_asha"
    path.write_text(text.replace(old, new))
    assert main(["search", str(path)]) == 2
    assert f"detsd: {path} has {sentence}" in capsys.readouterr().err


def test_what_a_file_says_of_its_search(tmp_path, capsys, caplog):
    for name, searcher in (("generate_search.yaml", "random"), ("evaluate.yaml", "single")):
        assert main(["search", str(ROOT / name)]) == 2
        assert f"{name} has searcher.name: {searcher}, but only ada" in capsys.readouterr().err
    text = (ROOT / "finetune_search.yaml").read_text()
    path = tmp_path / "search.yaml"
    path.write_text(text.replace("checkpoint_freq: 30", "checkpoint_freq: 100"))
    assert main(["search", str(path)]) == 0
    assert "training.checkpoint_freq: 100 is more than the first rung, 30, and" in caplog.text
    for written, late in (("{type: const, val: 100}", True), ("{type: int, minval: 9}", False)):
        caplog.clear()
        path.write_text(text.replace("checkpoint_freq: 30", f"checkpoint_freq: {written}"))
        assert main(["search", str(path)]) == 0
        assert ("is more than the first rung" in caplog.text) == late
    path.write_text(text.replace("max_rungs: 3", "max_rungs: null"))  # Determined's default
    assert main(["search", str(path)]) == 0


@pytest.mark.parametrize("section", ["grid", "evaluation", "inference"])
def test_guidance_intervals_and_steps_that_cannot_be_made(section, tmp_path):
    """Valid ones are two fractions, the smaller one first."""
    kind = {"grid": GenerateConfig, "evaluation": EvaluateConfig}.get(section, FinetuneConfig)
    base = {"model": {"pretrained_model_name_or_path": "demo_model"}}
    if section == "inference":
        base["concepts"] = {"concept_strs": "a-b", "initializer_strs": "c", "img_dirs": "d"}
    plural = "s" if section == "grid" else ""
    required = {"prompts": ["a"]} if section == "grid" else {}

    def parsed(**given):
        return getattr(parse_config(base | {section: required | given}, "test", kind), section)

    good = parsed(guidance_interval=[0, 0.8], spacing="trailing")
    assert (good.guidance_interval, good.spacing) == ([0.0, 0.8], "trailing")
    assert parsed().guidance_interval is parsed().spacing is None
    for interval in ([0.2], [0.8, 0.2], [0.5, 0.5], [-0.1, 1], [0, 1.1], [0, 0.5, 1], []):
        with pytest.raises(UserError, match=rf"{section}.guidance_interval is .* but must be \[st"):
            parsed(guidance_interval=interval)
    with pytest.raises(UserError, match=rf"{section}.spacing is 'even' but must be one of leading"):
        parsed(spacing="even")
    lcm = {f"scheduler_name{plural}": "lcm"}
    assert parsed(**lcm, num_inference_steps=50)
    with pytest.raises(UserError, match=rf"{section}.num_inference_steps is 51, but the lcm samp"):
        parsed(**lcm, num_inference_steps=51)


# Plain scalars as read by github.com/ghodss/yaml over gopkg.in/yaml.v2 2.4.0, with which Determined
# 0.38.1's master reads files; recorded with Debian's packages of both.
IN_GO = {
    "0150": 104, "007": 7, "08": 8, "-010": -8, "0o17": 15, "0O17": 15, "0x1F": 31, "0X1F": 31,
    "0b101": 5, "0B1": 1, "1_000": 1000, "1__0": 10, "_1": "_1", "0_8": 8, "0o8": "0o8", "0x": "0x",
    "yes": True, "Yes": True, "yEs": "yEs", "no": False, "on": True, "OFF": False, "y": True,
    "N": False, "true": True, "~": None, "Null": None, "1:30": "1:30", "190:20:30": "190:20:30",
    "1e3": 1000, "5e-4": 0.0005, "1.e3": 1000, ".5": 0.5, ".5e1": 5, "+.5": 0.5, "1e3_0": 1e30,
    ".5_0": 0.5, "._5": "._5", "1e400": "1e400", "inf": "inf", "+.nan": "+.nan", "01.5": 1.5,
    "2026-11-28": "2026-11-28", "2026-02-30": "2026-02-30", "2026-1-2": "2026-1-2", "=": "=",
    "2026-11-28T12:00:00Z": "2026-11-28T12:00:00Z", "1,000": "1,000", "0x1.8p1": "0x1.8p1",
    "9223372036854775808": 9223372036854775808, "18446744073709551616": 1.8446744073709552e19,
}  # fmt: skip


def test_scalars_are_a_clusters_as_its_library_reads_them():
    for text, value in IN_GO.items():
        found = cluster_value(text)
        assert found == value, text
        assert isinstance(found, bool) == isinstance(value, bool), text
    assert cluster_value("-.Inf") == -float("inf")
    assert math.isnan(cluster_value(".NAN"))


REFUSED = {
    "training: {num_sgd_steps: 0640}": (
        "hyperparameters.training.num_sgd_steps: 0640 is 640 to detsd and 416 to a cluster; write "
        '640, or 416, or "0640" for the string'
    ),
    "grid: {seeds: [007, 012]}": "grid.seeds[1]: 012 is 12 to detsd and 10 to a cluster",
    "concepts: {concept_strs: [N]}": (
        'concept_strs[0]: N is a string to detsd and false to a cluster; write false, or "N" for'
    ),
    "grid: {prompts: [a cat, &off off, *off]}": "prompts[1]: off is a string to detsd and false",
    "concepts: {files: [{a.pt: on}]}": "files[0].a.pt: on is a string to detsd and true",
    "grid: {prompts: [1999-12-31]}": (
        'prompts[0]: 1999-12-31 is a date to detsd and a string to a cluster; write "1999-12-31"'
    ),
    "grid: {prompts: [2026-02-30]}": "prompts[0]: 2026-02-30 is no value to detsd and a string",
    "grid: {prompts: [=]}": "prompts[0]: = is no value to detsd and a string to a cluster; write",
    "training: {learning_rate: .5e0}": "learning_rate: .5e0 is a string to detsd and 0.5 to",
    "concepts: {y: 1}": "the key hyperparameters.concepts.y: y is a string to detsd and true to",
    "grid: {num_seeds: 3, <<: {num_seeds: 5}}": (
        "hyperparameters.grid.num_seeds is replaced by the value from << on a cluster, but not by "
        "detsd; write << above it"
    ),
}


@pytest.mark.parametrize(("given", "sentence"), REFUSED.items())
def test_what_a_cluster_reads_otherwise_is_refused(given, sentence, tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(f"hyperparameters: {{{given}}}\n")
    for read in (read_experiment, load_config):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).count("\n") == 0
        assert sentence in str(error.value)


def test_all_that_a_cluster_reads_otherwise_is_named(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("name: yes\nhyperparameters: {grid: {prompts: [no], seeds: [010]}}\n")
    with pytest.raises(UserError) as error:
        read_experiment(path)
    first, *others = str(error.value).splitlines()
    assert first.startswith(f"{path}: name: yes is a string")
    assert [line.partition(":")[0].strip() for line in others] == [
        "hyperparameters.grid.prompts[0]", "hyperparameters.grid.seeds[0]",
    ]  # fmt: skip


def test_what_both_read_alike_is_taken():
    text = """
    steps: [1e3, 5e-4, 1_000, 0x1F, 007, 1.0, 100000000000000000000, .5, -0]
    texts: ["yes", 'n', "0150", "2026-11-28", !!str off, &x !!str no, *x, 1:30, yes sir, oN]
    others: [true, ~, null, False]
    base: &base {seeds: 1}
    merged: {<<: *base, seeds: 2}
    also: {steps: 2, <<: *base}
    folded: >-
      yes
    """
    assert disagreements(text) == []
    assert disagreements("") == []
    for path in ROOT.glob("*.yaml"):
        assert disagreements(path.read_text()) == [], path


def test_a_text_that_a_cluster_made_true_says_how():
    given = {"grid": {"prompts": [False]}, "model": {"pretrained_model_name_or_path": "x"}}
    with pytest.raises(UserError, match="yes, no, on, off, y and n are true or false"):
        parse_config(given, "the experiment", GenerateConfig)


def test_a_key_given_twice_is_a_sentence_without_advice_on_the_parser(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text(f"name: a\nname: b\nhyperparameters: {json.dumps(MINIMAL)}\n")
    with pytest.raises(UserError, match=r'duplicate key "name" .*, line 2, column 1.*\)$'):
        read_experiment(path)
