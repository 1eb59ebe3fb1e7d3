"""Networks for image classification with any pooling."""

# They register their networks.
from covpool.models import deit, dropcov_transformers, mobilenet_v2, resnet, shufflenet_v2, swin  # noqa: F401
from covpool.models.blocks import recompute
from covpool.models.classifier import ImageClassifier
from covpool.models.features import FeatureInfo, Stage
from covpool.models.folding import fold_batch_norm
from covpool.models.freezing import freeze, freeze_parts
from covpool.models.registry import create_model, list_models, model_arguments, register_model

__all__ = [
    "FeatureInfo",
    "ImageClassifier",
    "Stage",
    "create_model",
    "fold_batch_norm",
    "freeze",
    "freeze_parts",
    "list_models",
    "model_arguments",
    "recompute",
    "register_model",
]
