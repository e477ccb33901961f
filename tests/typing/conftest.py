"""The programs beside this file are read by a checker of types, and never run."""

collect_ignore_glob = ["*.py"]
