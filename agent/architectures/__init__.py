"""Model definitions: what a checkpoint is, how to build it, what goes in and out. See ``registry``."""

from agent.architectures.errors import (
    ArchitectureError,
    BrokenPlugInError,
    ContradictingTypeError,
    UnknownModelTypeError,
    UnrecognisedCheckpointError,
)
from agent.architectures.model_type import Answer, Dimension, ModelType, Options, Reading, Shape, Shapes, TensorSpec
from agent.architectures.registry import (
    Recognised,
    answer_of,
    build,
    from_state_dict,
    input_specs,
    is_batchable,
    is_known,
    logits_of,
    names,
    output_specs,
    recognise,
    synthetic_inputs,
)

__all__ = [
    "Answer",
    "ArchitectureError",
    "BrokenPlugInError",
    "ContradictingTypeError",
    "Dimension",
    "ModelType",
    "Options",
    "Reading",
    "Recognised",
    "Shape",
    "Shapes",
    "TensorSpec",
    "UnknownModelTypeError",
    "UnrecognisedCheckpointError",
    "answer_of",
    "build",
    "from_state_dict",
    "input_specs",
    "is_batchable",
    "is_known",
    "logits_of",
    "names",
    "output_specs",
    "recognise",
    "synthetic_inputs",
]
