"""Export to MindIR, its check, and prediction from exported files."""

from src.export.mindir import MindIRModel, write_mindir
from src.export.predict import Prediction, find_images, predict
from src.export.run import Exported, export_checkpoint

__all__ = ["Exported", "MindIRModel", "Prediction", "export_checkpoint", "find_images", "predict", "write_mindir"]
