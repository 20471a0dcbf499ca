"""A classifier as an ONNX file, and an ONNX file as a classifier."""

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nn.modes import frozen

INPUT, OUTPUT = "images", "logits"


def save_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a file that maps `images` (N, C, H, W) in [0, 1] to `logits`, for any N; normalisation is inside.

    Args:
        model: The classifier; left as found.
        example: At least two images of the size that the file is for.
        path: Where to.

    Raises:
        ValueError: The packages for it are missing, or the network does something that ONNX cannot say.
    """
    require_onnx()
    batch = torch.export.Dim("batch", min=1)
    with frozen(model), torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of deprecations between torch and onnxscript
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"{type(model).__name__} does something that ONNX cannot say ({str(error).splitlines()[0]}). "
                "Pass --formats state_dict,safetensors,model_info."
            ) from error
        finally:
            # The tracer derives a class of the same name from every module's; while these live, a name typed without
            # its path ("PSSiLU") means several classes, and the command line refuses it.
            gc.collect()
    _check_file(path)


class OnnxModel(nn.Module):
    """Calls onnxruntime on the CPU, so that attacks without gradients, and everything that judges, can meet the file.

    Args:
        path: A file that `save_onnx` wrote.

    Raises:
        ValueError: onnxruntime is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        require_onnx()
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self._session: Any = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits, on the device of the images, without a graph."""
        (logits,) = self._session.run([OUTPUT], {INPUT: x.detach().cpu().float().numpy()})
        return torch.from_numpy(logits).to(x.device)


def require_onnx() -> None:
    """Say which packages are missing, before anything is computed.

    Raises:
        ValueError: Some are.
    """
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX files need {', '.join(missing)}, not installed here. Run pip install 'lightning-paf[export]', or "
            "pass --formats state_dict,safetensors,model_info."
        )


def _check_file(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and hints off the screen."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript", "onnx_ir"))}
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
