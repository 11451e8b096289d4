"""Every error that fusar-edge raises on purpose.

    EdgeError                    exit code 1
    ├── InputError               exit code 2: what the user gave cannot be used
    │   ├── RecipeError          a recipe or spec: unknown key, wrong value, not found
    │   ├── DataError            a triplet manifest line, an image, an annotation
    │   ├── SceneError           a SAR product that cannot be read or located
    │   ├── AnchorError          an AlphaEarth source, table or per-image file
    │   ├── CheckpointError      a checkpoint folder
    │   ├── BundleError          a bundle: missing, changed or unsupported file
    │   ├── DeviceError          a GPU, its driver, memory or TensorRT: absent, or not what an engine needs
    │   └── OutputExistsError    the output is there and --force was not given
    ├── BusyError                the service takes nothing now; `retry_after_s` says when to ask again
    ├── MissingExtraError        exit code 2: a package of an extra is not installed
    └── GateError                exit code 1: parity or accuracy below its bound; nothing was written

A message says what was given, what is allowed and what to do, and names the file.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Root of the tree."""

    exit_code = 1


class InputError(EdgeError):
    exit_code = 2


class RecipeError(InputError):
    pass


class DataError(InputError):
    pass


class SceneError(InputError):
    pass


class AnchorError(InputError):
    pass


class CheckpointError(InputError):
    pass


class BundleError(InputError):
    pass


class DeviceError(InputError):
    pass


class OutputExistsError(InputError):
    pass


class BusyError(EdgeError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MissingExtraError(EdgeError):
    exit_code = 2


class GateError(EdgeError):
    pass
