"""Writer and reader of classifiers as ONNX files."""

import gc
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nets import KernelClassifier
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.modes import frozen

INPUT, OUTPUT = "images", "logits"


def save_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Export a model to ONNX.

    The file maps `images` (N, C, H, W) in [0, 1] to `logits`, for any N, and includes the normalisation.

    Args:
        model: The classifier; not modified.
        example: Images (N, C, H, W) of the input size.
        path: File to write.

    Raises:
        ValueError: Packages are missing, or ONNX has no operation for a part of the network.
    """
    require_onnx()
    import onnx

    if any(isinstance(module, ODEBlock | KernelClassifier) for module in model.modules()):
        raise ValueError(
            "The network must have no ODE block and no kernel regression for an ONNX file, as a solver cannot be "
            "traced, got one. Pass --formats state_dict,safetensors,model_info."
        )
    twice = torch.cat([example[:1], example[:1]])  # an axis of size 1 would become a constant
    with frozen(model), torch.no_grad(), warnings.catch_warnings(action="ignore"):  # deprecations inside onnxscript
        try:
            torch.onnx.export(
                model,
                (twice,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"{type(model).__name__} uses an operation that ONNX lacks ({str(error).splitlines()[0]}). "
                "Pass --formats state_dict,safetensors,model_info."
            ) from error
        finally:
            # The tracer derives a class of the same name from the class of every module. While these exist, the
            # command line refuses a name without its path ("PSSiLU") as ambiguous.
            gc.collect()
    onnx.checker.check_model(str(path), full_check=True)


class OnnxModel(nn.Module):
    """An ONNX file as a module, for evaluations and attacks without gradients.

    It runs in onnxruntime on the CPU.

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
        """Images (N, C, H, W) in [0, 1] to logits on the same device, without a graph."""
        (logits,) = self._session.run([OUTPUT], {INPUT: x.detach().cpu().float().numpy()})
        return torch.from_numpy(logits).to(x.device)


def require_onnx() -> None:
    """Check that all packages are installed.

    Raises:
        ValueError: Some are missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX requires the packages {', '.join(missing)}, which are missing. Run pip install "
            "'lightning-paf[export]', or pass --formats state_dict,safetensors,model_info."
        )
