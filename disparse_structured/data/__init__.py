"""From files and batches to the arguments of ``forward``: pictures, batches, calibration, random states."""

from disparse_structured.data.image_folder import Images, images
from disparse_structured.data.preprocessing import Preprocessing

__all__ = ["Images", "Preprocessing", "images"]
