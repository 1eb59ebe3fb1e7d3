"""Export to MindIR and ONNX, the check of the files, and prediction from them."""

from src.export.folding import fold_batch_norm
from src.export.formats import FORMATS, ExportedModel, open_exported
from src.export.predict import Prediction, find_images, predict
from src.export.run import Exported, export_checkpoint, export_network

__all__ = [
    "FORMATS",
    "Exported",
    "ExportedModel",
    "Prediction",
    "export_checkpoint",
    "export_network",
    "find_images",
    "fold_batch_norm",
    "open_exported",
    "predict",
]
