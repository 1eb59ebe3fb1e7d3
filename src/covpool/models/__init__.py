"""Networks for image classification with any pooling."""

from covpool.models import resnet  # noqa: F401 - registers its networks
from covpool.models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
