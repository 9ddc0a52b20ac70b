"""Images, videos and sounds: read, counted in tokens and turned into a model's inputs, as its own processor does it.

How many tokens one has follows from its size. So only its path is kept with the prepared row, and what the model is
given of it is made when the batch is.
"""

from factory.data.media.batch import Inputs
from factory.data.media.expand import Expander
from factory.data.media.processor import Processor, ProcessorSpec, processor_spec
from factory.data.media.read import read_image
from factory.data.media.video import read_video

__all__ = ["Expander", "Inputs", "Processor", "ProcessorSpec", "processor_spec", "read_image", "read_video"]
