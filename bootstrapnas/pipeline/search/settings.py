"""What a config's bootstrapNAS.search section says, checked. Free of torch."""

from __future__ import annotations

from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import NNCFConfig, search_settings
from bootstrapnas.search import SearchSettings, named_algorithm


def configured_search(config: NNCFConfig) -> SearchSettings:
    """Return the search that a config asks for; `UserError`, naming the file, if there can be none like it."""
    try:
        settings = SearchSettings(**search_settings(config))
        named_algorithm(settings.algorithm)
    except UserError as error:
        raise UserError(f"{config.path}: bootstrapNAS.{error}") from None
    return settings
