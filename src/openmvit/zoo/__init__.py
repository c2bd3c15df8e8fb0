"""The one call that builds a network, and the one that loads whatever the user named."""

from openmvit.architectures import list_models
from openmvit.zoo.models import convert_file, create_model, load_model, load_network, load_pretrained

__all__ = ["convert_file", "create_model", "list_models", "load_model", "load_network", "load_pretrained"]
