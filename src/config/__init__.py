"""Configuration: YAML files, command line, and the synchronisation of ModelArts."""

from src.config.loader import load_config
from src.config.schema import Config
from src.errors import ConfigError

__all__ = ["Config", "ConfigError", "load_config"]
