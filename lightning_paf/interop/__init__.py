"""Import and export of weights: checkpoints, plain files, ONNX, leaderboard."""

from lightning_paf.interop.checkpoint_file import CheckpointFile, WeightSet, read_checkpoint
from lightning_paf.interop.download import weight_file
from lightning_paf.interop.key_map import KeyMap, map_keys
from lightning_paf.interop.leaderboard import model_info
from lightning_paf.interop.normalized_net import NormalizedNet, Statistics, bare_net, split_statistics
from lightning_paf.interop.plain_files import save_safetensors, save_state_dict

__all__ = [
    "CheckpointFile",
    "KeyMap",
    "NormalizedNet",
    "Statistics",
    "WeightSet",
    "bare_net",
    "map_keys",
    "model_info",
    "read_checkpoint",
    "save_safetensors",
    "save_state_dict",
    "split_statistics",
    "weight_file",
]
