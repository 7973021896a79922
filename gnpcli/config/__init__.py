"""The typed configuration tree, read from layers of YAML and overrides."""

from gnpcli.config.optimizers import OPTIMIZERS, OptimizerConfig
from gnpcli.config.schedules import SCHEDULES, ScheduleConfig
from gnpcli.config.schema import (
    CheckpointConfig,
    DataConfig,
    GrConfig,
    MeshConfig,
    RunConfig,
    TrainConfig,
    Weights,
)
from gnpcli.config.strategies import STRATEGIES, Strategy

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "STRATEGIES",
    "CheckpointConfig",
    "DataConfig",
    "GrConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "Strategy",
    "TrainConfig",
    "Weights",
]
