"""The head over tokens: any pooling beside the class token, or beside the average of the tokens where there is none."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import nn, ops

from covpool.models.classifier import ImageClassifier, dense_classifier
from covpool.models.transformer import dense, layer_norm
from covpool.pooling import create_pooling

PLAIN = "gap"
_EPS = 1e-6


def token_map(tokens: ms.Tensor) -> ms.Tensor:
    """Tokens (N, L, C) as a map that a pooling takes, (N, C, L, 1)."""
    return tokens.swapaxes(1, 2).expand_dims(3)


class NamedClassifier(nn.Cell):
    """A classifier under the name ``fc``, as timm's Swin has it: (N, D) -> (N, K)."""

    def __init__(self, fc: nn.Cell) -> None:
        super().__init__()
        self.fc = fc

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.fc(x)


class TokenClassifier(ImageClassifier):
    """Base of the transformers. A subclass builds its backbone, then calls :meth:`build_token_head`.

    ``forward_backbone`` and ``forward_features`` give tokens (N, class_tokens + L, D) after the last normalisation.
    With 'gap' this is the plain network: ``head`` is a dense layer of the class token, or of the average of the tokens.
    With any other pooling the other tokens go through

        LayerNorm -> Linear D -> d -> (N, d, L, 1) -> pooling -> dense layer ``fc``

    and the logits are the sum of both. ``pre_logits`` gives what the classifiers see: the class token (or average),
    after it the pooled vector.

    Attributes:
        class_tokens: 1 or 0.
        nested_head: Whether the dense layer of ``head`` has a name of its own, ``head.fc``.
    """

    class_tokens: int = 1
    nested_head: bool = False

    def build_token_head(
        self, channels: int, pooling: str, reduction_dim: int, num_classes: int, pooling_args: dict[str, Any] | None
    ) -> None:
        """Add the head after ``channels`` numbers per token."""
        self.num_features = channels
        self.has_reduction = pooling != PLAIN
        if self.has_reduction:
            if reduction_dim < 1:
                raise ValueError(f"reduction_dim must be at least 1, not {reduction_dim}")
            self.layer_reduce_norm = layer_norm(channels, _EPS)
            self.layer_reduce = dense(channels, reduction_dim)
            self.pooling = create_pooling(pooling, channels=reduction_dim, **(pooling_args or {}))
        elif pooling_args:
            create_pooling(pooling, channels=channels, **pooling_args)  # says that it takes none
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put new classifiers, drawn from MindSpore's global seed, in the place of the present ones.

        Make the optimiser afterwards: one that was made before trains the old classifiers.

        Args:
            num_classes: Outputs; 0 for none: the network then gives what ``pre_logits`` does.

        Raises:
            ValueError: A negative number.
        """
        own = dense_classifier(self.num_features, num_classes)
        self.head = NamedClassifier(own) if self.nested_head and num_classes else own
        if self.has_reduction:
            self.fc = dense_classifier(self.pooling.out_features, num_classes)
        self.num_classes = num_classes
        self.compile_cache.clear()

    def forward_features(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to tokens (N, class_tokens + L, num_features), the class token first."""
        return self.forward_backbone(x)

    def summary_token(self, x: ms.Tensor) -> ms.Tensor:
        """Tokens (N, class_tokens + L, D) to the class token, or to the average of the tokens: (N, D)."""
        if self.class_tokens:
            return x[:, :1].reshape(-1, self.num_features)
        return x.mean(1)

    def pool_tokens(self, x: ms.Tensor, length: int) -> ms.Tensor:
        """Tokens of patches (N * length, num_features) to the pooled vector (N, pooling.out_features)."""
        x = self.layer_reduce(self.layer_reduce_norm(x))
        return self.pooling(token_map(x.reshape(-1, length, x.shape[1])))

    def forward_head(self, x: ms.Tensor, pre_logits: bool = False) -> ms.Tensor:
        """Tokens (N, class_tokens + L, num_features) to logits (N, num_classes).

        With ``pre_logits``, or without a classifier, to the class token (or average) and after it the pooled vector.
        """
        token = self.summary_token(x)
        bare = pre_logits or self.num_classes == 0
        if not self.has_reduction:
            return token if bare else self.head(self.drop(token))
        length = x.shape[1] - self.class_tokens
        vector = self.pool_tokens(x[:, self.class_tokens :].reshape(-1, self.num_features), length)
        if bare:
            return ops.concat((token, vector), 1)
        return self.head(self.drop(token)) + self.fc(self.drop(vector))
