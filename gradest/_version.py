"""The version of gradest, as it is installed."""

import importlib.metadata


def _version() -> str:
    try:
        return importlib.metadata.version("gradest")
    except importlib.metadata.PackageNotFoundError:
        # Run from a folder that was not installed, which has no metadata: below every version.
        return "0+unknown"


__version__ = _version()
