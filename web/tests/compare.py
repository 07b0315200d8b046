"""Print the largest difference of two pictures, in steps of 8 bits.

Colours that nobody can see do not count: `python compare.py A B`.
"""

import sys

import numpy as np
from PIL import Image

images = [Image.open(path) for path in sys.argv[1:]]
assert images[0].size == images[1].size, [image.size for image in images]
pixels = [np.asarray(image.convert("RGBA")).astype(np.int16) for image in images]
seen = (pixels[0][..., 3] > 0) & (pixels[1][..., 3] > 0)
off = np.abs(pixels[0] - pixels[1])
print(max(off[..., 3].max(), off[seen].max(initial=0)))
