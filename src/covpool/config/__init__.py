"""Configuration: YAML files, command line, and the synchronisation of ModelArts."""

from covpool.config.loader import load_config
from covpool.config.schema import Config
from covpool.errors import ConfigError

__all__ = ["Config", "ConfigError", "load_config"]
