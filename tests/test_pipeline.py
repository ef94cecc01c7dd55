"""Sampling: every scheduler, and pixels that depend on their own job alone."""

import numpy as np
import pytest
import torch

from detsd.concepts import Vocabulary
from detsd.config import InferenceConfig, ModelConfig
from detsd.formats import LearnedConcept
from detsd.models import load_base_model
from detsd.pipeline import SCHEDULERS, SampleJob, Sampler, sample_jobs


def sampler(folder, **values):
    model = load_base_model(ModelConfig(str(folder)), torch.device("cpu"))
    vocabulary = Vocabulary(model.tokenizer, model.text_encoder)
    vocabulary.add(LearnedConcept("blob-thing", "ball", torch.ones(1, 16)))
    return Sampler(model, vocabulary, InferenceConfig(num_inference_steps=3, **values), 32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_an_image_on_both_kinds_of_model(name, tiny_model, tiny_v_model):
    for folder in (tiny_model, tiny_v_model):
        make = sampler(folder, scheduler_name=name)
        assert make.pipeline.scheduler.config.beta_start == 0.00085
        image = make(SampleJob("a blob-thing", 3))
        assert image.size == (32, 32)
        assert np.asarray(image).std() > 0


def test_pixels_are_a_function_of_the_job(tiny_model):
    make = sampler(tiny_model)
    job = SampleJob("a blob-thing", 7)
    first = make(job).tobytes()
    for other in (SampleJob("a blob-thing", 8), SampleJob("a blob-thing", 7, copy=1)):
        assert make(other).tobytes() != first
    assert make(job).tobytes() == first


def test_jobs_are_prompts_times_seeds_times_copies():
    config = InferenceConfig(inference_prompts=["a", "b"], seeds=[1, 2], img_per_prompt=3)
    jobs = sample_jobs(config)
    assert len(set(jobs)) == 12
    assert jobs[0] == SampleJob("a", 1, 0)
    assert jobs[-1] == SampleJob("b", 2, 2)
