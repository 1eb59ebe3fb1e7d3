"""Export to MindIR and ONNX, the check of the files, and prediction from them."""

from covpool.export.predict import Prediction, find_images, open_model, predict, write_predictions
from covpool.export.run import FORMATS, Exported, ExportedModel, export_checkpoint, export_network, open_exported
from covpool.models import fold_batch_norm

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
    "open_model",
    "predict",
    "write_predictions",
]
