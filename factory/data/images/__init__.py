"""Images: read, counted in tokens and turned into a model's inputs, all as the model's own processor does it.

An image's tokens are known from its size. So only its path is kept with the prepared row, and its pixels are made when
the batch is.
"""

from factory.data.images.batch import Pictures
from factory.data.images.expand import Expander
from factory.data.images.processor import ImageSpec, image_spec, read_processor_object
from factory.data.images.read import read_image

__all__ = ["Expander", "ImageSpec", "Pictures", "image_spec", "read_image", "read_processor_object"]
