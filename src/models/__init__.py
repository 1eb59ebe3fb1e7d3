"""Networks for image classification with any pooling."""

from src.models import resnet  # noqa: F401 - registers its networks
from src.models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
