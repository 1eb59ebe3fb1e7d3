"""Global covariance pooling for image classification in MindSpore."""
