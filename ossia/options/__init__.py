"""User settings: frozen dataclasses whose fields state their help, bounds and names once.

`ossia.cli.fields` derives the commands' options from them. Callers of the library create the same
dataclasses, so both get the same checks.
"""

from ossia.options.generation import (
    KV,
    EngineOptions,
    SamplingOptions,
)
from ossia.options.loading import (
    IGNORE_UNKNOWN_KEYS,
    MOST_THREADS,
    PRECISIONS,
    Dtype,
    Int8,
    KernelOptions,
    Load,
    LoadOptions,
    ThreadOptions,
    TrainingMachineOptions,
)
from ossia.options.setting import (
    Option,
    Options,
    Setting,
    flag,
    settings,
    split,
)

__all__ = [
    "IGNORE_UNKNOWN_KEYS",
    "KV",
    "MOST_THREADS",
    "PRECISIONS",
    "Dtype",
    "EngineOptions",
    "Int8",
    "KernelOptions",
    "Load",
    "LoadOptions",
    "Option",
    "Options",
    "SamplingOptions",
    "Setting",
    "ThreadOptions",
    "TrainingMachineOptions",
    "flag",
    "settings",
    "split",
]
