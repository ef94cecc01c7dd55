"""The `hyperparameters` section as typed, documented, strictly checked objects.

load_config("finetune_demo.yaml", ["training.num_sgd_steps=200"]) -> FinetuneConfig
"""

from detsd.config.experiment import (
    KINDS,
    Config,
    check_experiment,
    load_config,
    override,
    parse_config,
    read_experiment,
    refuse,
)
from detsd.config.finetune import (
    ConceptsConfig,
    EvaluatorConfig,
    FinetuneConfig,
    InferenceConfig,
    MeasureConfig,
    TrainingConfig,
)
from detsd.config.generate import (
    EvaluateConfig,
    EvaluationConfig,
    GenerateConfig,
    GridConfig,
    LearnedConceptsConfig,
)
from detsd.config.model import ModelConfig
from detsd.config.schema import REQUIRED, differences, flat, type_name
