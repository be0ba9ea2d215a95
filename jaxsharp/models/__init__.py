"""Pure flax models whose parameters take the dtype of their inputs; one architecture a file."""

from jaxsharp.models.activations import ACTIVATIONS
from jaxsharp.models.cnn import CNN
from jaxsharp.models.linear import Linear
from jaxsharp.models.llama import Llama
from jaxsharp.models.mlp import MLP
from jaxsharp.models.normalization import NORMALIZATIONS, WEIGHT_NORMALIZATIONS, Normalize
from jaxsharp.models.resnet import ResNet, ResNet20
from jaxsharp.models.transformer import Transformer
from jaxsharp.models.vgg import VGG, VGG11
from jaxsharp.models.vit import ViT

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "NORMALIZATIONS",
    "VGG",
    "VGG11",
    "WEIGHT_NORMALIZATIONS",
    "Linear",
    "Llama",
    "Normalize",
    "ResNet",
    "ResNet20",
    "Transformer",
    "ViT",
]
