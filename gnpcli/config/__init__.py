"""The typed configuration tree, read from layers of YAML and overrides."""

from gnpcli.config.schema import (
    WARMUP_STRATEGIES,
    CheckpointConfig,
    DataConfig,
    GrConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    Strategy,
    TrainConfig,
    Weights,
)

__all__ = [
    "WARMUP_STRATEGIES",
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
