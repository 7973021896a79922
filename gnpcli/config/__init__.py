"""The typed configuration tree, read from layers of YAML and overrides."""

from gnpcli.config.schema import (
    CheckpointConfig,
    DataConfig,
    GrConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    Weights,
)
from gnpcli.config.strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "CheckpointConfig",
    "DataConfig",
    "GrConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "Strategy",
    "TrainConfig",
    "Weights",
]
