"""Around calls of nncf."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from bootstrapnas.errors import UserError
from bootstrapnas.export.runtime import last_line
from bootstrapnas.export.verification import ExportError


@contextlib.contextmanager
def quiet_nncf(what: str) -> Iterator[None]:
    """Keep nncf's bars and notes off the standard output, which is for results; what it raises is an `ExportError`."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except UserError:
        raise
    except Exception as error:  # nncf and openvino raise many kinds
        raise ExportError(f"{what}: {last_line(error)}") from error
    finally:
        logger.setLevel(level)
