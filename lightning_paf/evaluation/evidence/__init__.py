"""Evidence files: `write`, `read` and `verify` an upper bound of robust accuracy.

A file has for every evaluated sample a hash of the clean image with its label, the outcome, and the exact adversarial
image where an attack fooled the model. It is a safetensors file that ends with the SHA-256 of all other bytes.
"""

from lightning_paf.evaluation.evidence.read import SUFFIX, Evidence, evidence_files, read
from lightning_paf.evaluation.evidence.verify import CHECKS, Mismatch, Verification, verify
from lightning_paf.evaluation.evidence.write import write

__all__ = ["CHECKS", "SUFFIX", "Evidence", "Mismatch", "Verification", "evidence_files", "read", "verify", "write"]
