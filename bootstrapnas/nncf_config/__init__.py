"""NNCF JSON, the file that people edit: its only reader and writer. Free of torch."""

from bootstrapnas.nncf_config.elastic_space import build_space, config_with_space, listed_space, one_stage_config
from bootstrapnas.nncf_config.implied import check_model
from bootstrapnas.nncf_config.node_names import NodeNames, module_path, scope_matcher
from bootstrapnas.nncf_config.reading import (
    NNCFConfig,
    check_config,
    format_config,
    read_config,
    search_settings,
    sequence_length,
    write_config,
)

__all__ = [
    "NNCFConfig",
    "NodeNames",
    "build_space",
    "check_config",
    "check_model",
    "config_with_space",
    "format_config",
    "listed_space",
    "module_path",
    "one_stage_config",
    "read_config",
    "scope_matcher",
    "search_settings",
    "sequence_length",
    "write_config",
]
